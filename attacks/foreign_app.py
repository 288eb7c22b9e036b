"""The observation of a round of any Flower app, from its record and its `torch.nn.Module`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metaleak.attacks.observation import Observation, Update
from metaleak.clients.episode import Parameters
from metaleak.clients.models import TorchModule, blank_inputs
from metaleak.clients.rules import Rule


@runtime_checkable
class TrainsLocally(Protocol):
    """A rule whose learners take local steps with the learning rate `rate`."""

    @property
    def rate(self) -> float:
        """The learning rate of the local steps."""
        ...


def observed_app(
    update: Update,
    module: nn.Module,
    rule: Rule,
    examples: int,
    input_shape: tuple[int, ...],
    own: tuple[Tensor, Tensor] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Observation:
    """Return the observation of `update`, a round of an app that trains `module` by `rule`.

    `module` takes images `(B, C, H, W)` of `input_shape` and returns logits `(B, classes)`; `examples` is the typical
    number of examples of a learner, assumed to be equally many of each class in simulated learners. `own` are the
    adversary's images `(N, C, H, W)` in [0, 1] and their classes `(N,)`. With `mean` and `std`, one value per
    channel, images in [0, 1] are normalized before the module. Positions of targets are classes.

    Raises `ValueError` if the update's arrays are not the parameters of the module, if it does not take images of
    `input_shape`, or if the replies are weights or differences and `rule` has no learning rate.
    """
    update = _with_names_of(module, update)
    gradients = update.gradients(_rate(update, rule))
    model = TorchModule(normalized(module, mean, std) if mean or std else module)
    ways = _classes(model, update.sent, input_shape)
    each = max(2, round(examples / ways))
    return Observation(
        model=model,
        rule=rule,
        parameters=update.sent,
        gradients=gradients,
        ways=ways,
        # Such a learner has one set where attacks expect two, so half of it is used for each.
        shots=each - each // 2,
        queries=each // 2,
        classes=torch.arange(ways).expand(len(update.learners), -1),
        own_examples=None if own is None else own[0],
        own_labels=None if own is None else own[1],
        defenses=(),
        mean_of=update.mean_of,
        input_shape=tuple(input_shape),
    )


def normalized(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Return a copy of `module` that takes images `(B, C, H, W)` in [0, 1] and normalizes them by `mean` and `std`.

    Its parameters keep their names. Raises `ValueError` unless `mean` and `std` have the same length and `std` is
    positive.
    """
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(
            f"normalize: mean and std must have the same length, and std be above 0, got {list(mean)} and {list(std)}"
        )
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def normalize(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *others = inputs
        return ((images - shift.to(images)) / scale.to(images), *others)

    copy = _copied(module)
    copy.register_forward_pre_hook(normalize)
    return copy


def _copied(module: nn.Module) -> nn.Module:
    # `TorchModule` copies the module and raises for one that cannot be copied.
    return TorchModule(module).module


def _with_names_of(module: nn.Module, update: Update) -> Update:
    """Return the update with only the learned parameters of `module`, under the module's names.

    Flower's classic strategies send arrays without names, in the order of `module.state_dict()`: `0`, `1` and so on.
    """
    state = module.state_dict()
    learned = {name: tuple(value.shape) for name, value in module.named_parameters() if value.requires_grad}
    numbers = [str(place) for place in range(len(update.sent))]
    if set(update.sent) == set(numbers):
        if len(state) != len(numbers):
            raise ValueError(
                f"the record has {len(numbers)} arrays, but the model {len(state)}: it must be the app's model"
            )
        names = dict(zip(numbers, state, strict=True))
        update = replace(
            update,
            sent={names[number]: value for number, value in update.sent.items()},
            received={names[number]: value for number, value in update.received.items()},
        )
    sent = _chosen(update.sent, learned, leading=0)
    return replace(update, sent=sent, received=_chosen(update.received, learned, leading=1))


def _chosen(arrays: Parameters, shapes: dict[str, tuple[int, ...]], leading: int) -> Parameters:
    for name, shape in shapes.items():
        if name not in arrays:
            there = ", ".join(sorted(arrays)) or "none"
            raise ValueError(f"the model's parameter {name!r} is not in the record, whose arrays are {there}")
        if tuple(arrays[name].shape[leading:]) != shape:
            found = tuple(arrays[name].shape[leading:])
            raise ValueError(f"the model's parameter {name!r} has the shape {shape}, but {found} in the record")
    return {name: arrays[name].to(torch.float32) for name in shapes}


def _rate(update: Update, rule: Rule) -> float:
    if update.holds == "gradient":
        return 1.0
    if not isinstance(rule, TrainsLocally):
        raise ValueError(f"replies hold {update.holds}: the rule must have a local learning rate, as fedavg has")
    return rule.rate


def _classes(model: TorchModule, parameters: Parameters, input_shape: tuple[int, ...]) -> int:
    """Return the number of the model's logits."""
    try:
        logits = model(parameters, blank_inputs(2, input_shape))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the model cannot take examples of shape {input_shape}: {reason}") from None
    if logits.ndim != 2 or len(logits) != 2:
        raise ValueError(f"the model must return (2, classes) for 2 examples, got the shape {tuple(logits.shape)}")
    return int(logits.shape[1])
