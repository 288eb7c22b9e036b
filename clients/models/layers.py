"""The layers of a model, found by following an example through it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metaleak.clients.episode import Parameters

Compute = Callable[[Parameters, Tensor], Tensor]
"""A model as a function: logits from parameters and images."""

INPUT = "input"
"""The name that stands for the example among the names of layers."""

_RESHAPES = frozenset(
    {"flatten", "reshape", "view", "contiguous", "permute", "transpose", "squeeze", "unsqueeze", "to"}
)
ACTIVATIONS = frozenset(
    {"relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "sigmoid", "tanh", "hardtanh", "relu6"}
)
"""Functions of torch that act on each number by itself."""

_CONSTANTS: dict[str, dict[str, float]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
}
"""The arguments of activations after the input, in torch's order, with torch's defaults."""

_BIASED = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
"""Functions whose arguments after the input are a weight and perhaps a bias."""


@dataclass(frozen=True)
class Sliding:
    """How the kernel of a two-dimensional convolution moves over its input: pairs are rows and columns."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Layer:
    """One call of a torch function with parameters.

    `name` is the common beginning of its parameters' names, made unique by the function's name. `kind` is the torch
    function, such as `linear`, `conv2d` or `batch_norm`. `takes` names the layers whose outputs are its inputs, with
    `INPUT` for the example itself. `after` lists the functions that are applied to its output before the next layer,
    without reshapes. Shapes are those of one example. `sliding` describes a `conv2d`; it is `None` if its padding is
    not a pair of numbers. `constants` are the numbers with which the activation is called, in torch's order and with
    its defaults: the slope of `leaky_relu`, alpha of `elu`, beta and threshold of `softplus`, the limits of
    `hardtanh`.
    """

    name: str
    kind: str
    weight: str | None
    bias: str | None
    takes: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    after: tuple[str, ...] = ()
    sliding: Sliding | None = None
    constants: tuple[float, ...] = ()

    @property
    def activation(self) -> str | None:
        """The activation that is applied to its output, by the name of the torch function."""
        return next((name for name in self.after if name in ACTIVATIONS), None)


@dataclass(frozen=True)
class Layers:
    """The layers of a model in the order of their calls.

    `output` names the layers from whose outputs the logits are computed. `before` lists the functions that are
    applied to the example before the first layer, without reshapes.
    """

    layers: tuple[Layer, ...]
    output: tuple[str, ...]
    before: tuple[str, ...] = ()

    def chain(self) -> tuple[Layer, ...]:
        """Return the layers of a chain, in which each layer takes the output of the one before and nothing else.

        Raises `ValueError` in one line if the model is not such a chain.
        """
        expected = INPUT
        for layer in self.layers:
            if layer.takes != (expected,):
                raise ValueError(
                    f"the model is not a chain of layers: {layer.name} takes {' and '.join(layer.takes)}, "
                    f"not {expected} alone"
                )
            expected = layer.name
        if self.output != (expected,):
            raise ValueError(
                f"the model is not a chain of layers: the logits are made of {' and '.join(self.output)}, "
                f"not of {expected} alone"
            )
        return self.layers


def layers_of(model: Compute, parameters: Parameters, images: Tensor) -> Layers:
    """Return the layers of `model`, which are found by computing with `images (B, C, H, W)`.

    Only functions called with some of `parameters` count as layers. Where the model branches on values, only the
    branches that these images take are seen.
    """
    return follow(model, parameters, images).layers()


def follow(model: Compute, parameters: Parameters, images: Tensor) -> "Followed":
    """Compute `model` with `images (B, C, H, W)` and return what was noted on the way."""
    followed = Followed(parameters, images)
    with torch.no_grad(), followed:
        logits = model(parameters, images)
    followed.output = followed.takes_of([logits])
    return followed


@dataclass
class _Call:
    layer: Layer
    after: list[str] = field(default_factory=list)
    constants: tuple[float, ...] = ()


class Followed(TorchFunctionMode):
    """Notes from which layers' outputs, and with which parameters, each tensor is computed.

    `first_input` is the input of the first layer; `uses` counts the calls in which each parameter took part.
    """

    def __init__(self, parameters: Parameters, images: Tensor) -> None:
        super().__init__()
        self.first_input: Tensor | None = None
        self.uses: Counter[str] = Counter()
        self.output: tuple[str, ...] = ()
        self._calls: dict[str, _Call] = {}
        self._before: list[str] = []
        self._sources: dict[int, tuple[str, ...]] = {id(images): (INPUT,)}
        self._parameters: dict[int, tuple[str, ...]] = {id(value): (name,) for name, value in parameters.items()}
        # Tensors are kept alive, because Python may give the id of a deleted one to another.
        self._alive: list[Tensor] = []

    def layers(self) -> Layers:
        """Return the layers that were noted."""
        layers = (
            replace(call.layer, after=tuple(call.after), constants=call.constants) for call in self._calls.values()
        )
        return Layers(tuple(layers), self.output, tuple(self._before))

    def takes_of(self, tensors: list[Tensor]) -> tuple[str, ...]:
        """Return the names of the layers from whose outputs `tensors` are computed."""
        return tuple(dict.fromkeys(name for one in tensors for name in self._sources.get(id(one), ())))

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        made = list(_tensors(result))
        if made:
            given = list(_tensors([*args, *(kwargs or {}).values()]))
            self._note(func.__name__.strip("_"), given, made, (args, kwargs or {}))
        return result

    def _note(self, kind: str, given: list[Tensor], made: list[Tensor], called: "_Arguments") -> None:
        self._alive += [*given, *made]
        takes = self.takes_of(given)
        named = [self._parameters.get(id(one), ()) for one in given if id(one) not in self._sources]
        names = list(dict.fromkeys(name for one in named for name in one))
        self.uses.update(names)
        if not takes:
            if names:
                self._parameters.update({id(one): tuple(names) for one in made})
            return
        if names:
            takes = self._layer(kind, takes, [next(iter(one), None) for one in named], given, made[0])
            if kind == "conv2d" and takes[0] in self._calls:
                call = self._calls[takes[0]]
                call.layer = replace(call.layer, sliding=_sliding(*called))
        elif kind not in _RESHAPES:
            for call in (self._calls[name] for name in takes if name != INPUT):
                call.after.append(kind)
                if kind in ACTIVATIONS:
                    call.constants = _constants(kind, *called)
            if INPUT in takes:
                self._before.append(kind)
        self._sources.update({id(one): takes for one in made})

    def _layer(
        self, kind: str, takes: tuple[str, ...], named: list[str | None], given: list[Tensor], made: Tensor
    ) -> tuple[str, ...]:
        """Note a layer, or the bias of the previous layer, and return the names of the layers in its output."""
        before = self._calls.get(takes[0]) if len(takes) == 1 else None
        names = [name for name in named if name is not None]
        if before and kind in ("add", "iadd", "radd") and before.layer.bias is None and not before.after:
            before.layer = replace(before.layer, bias=names[0])
            return takes
        places: list[str | None] = named if kind in _BIASED else [*names]
        weight, bias, *_ = [*places, None, None]
        name = names[0].rpartition(".")[0] or names[0]
        if name in self._calls:
            name = f"{name}.{kind}"
        while name in self._calls:
            name += "'"
        example = next(one for one in given if id(one) in self._sources)
        if self.first_input is None:
            self.first_input = example
        shapes = tuple(example.shape[1:]), tuple(made.shape[1:])
        self._calls[name] = _Call(Layer(name, kind, weight, bias, takes, *shapes))
        return (name,)


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _sliding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sliding | None:
    """Return how the kernel of `conv2d` moves, from the arguments that it is called with."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        if padding != "valid":
            return None
        padding = 0
    stride, dilation = given.get("stride", 1), given.get("dilation", 1)
    return Sliding(_pair(stride), _pair(padding), _pair(dilation), int(given.get("groups", 1)))


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else (*value, *value)[:2]
    return int(rows), int(columns)


def _constants(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
    """Return the numbers that an activation is called with, by their places or names."""
    defaults = _CONSTANTS.get(kind, {})
    given = {**dict(zip(defaults, args[1:], strict=False)), **kwargs}
    return tuple(float(given.get(name, default)) for name, default in defaults.items())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
