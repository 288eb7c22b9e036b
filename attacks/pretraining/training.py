"""Training of ordinary supervised models, several of one kind side by side, and finetuning of their classifiers."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import vmap

from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model, head_of


class Training(BaseModel):
    """Stochastic gradient descent on the cross-entropy, or Adam, which does not use `momentum`.

    `schedule` is how the rate goes: `cosine` to 0 over all epochs, `step` times `decay` every `every` epochs.
    `augment` flips images and shifts them by up to an eighth of their side, each anew in every epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["sgd", "adam"] = "sgd"
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 100
    batch: Annotated[int, Field(ge=1, le=65_536)] = 128
    rate: Annotated[float, Field(gt=0, le=100)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    every: Annotated[int, Field(ge=1)] = 10
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    augment: bool = False

    def over(self, leaves: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters; each entry moves by its own gradient alone."""
        if self.optimizer == "adam":
            return torch.optim.Adam(leaves, self.rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(leaves, self.rate, self.momentum, weight_decay=self.weight_decay)

    def rate_in(self, epoch: int) -> float:
        """Return the learning rate of an `epoch`, counted from 0."""
        if self.schedule == "cosine":
            return self.rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.rate * self.decay ** (epoch // self.every) if self.schedule == "step" else self.rate


def train(
    model: Model,
    starts: Sequence[Parameters],
    inputs: Tensor,
    labels: Tensor,
    places: Tensor,
    training: Training,
    generators: Sequence[torch.Generator],
    moving: frozenset[str] | None = None,
    each_its_own: bool = False,
) -> list[Parameters]:
    """Return M models trained from their `starts`, each on its own examples `places (M, n)` of `inputs (N, ...)`.

    With `each_its_own` the inputs are those of each model, `(M, N, ...)`. `labels (N,)` int64. The order of a model's
    examples, and its augmentations, come from its own generator on the CPU, so that a model is the same, up to
    rounding, beside whichever others it is trained. It computes where `inputs` lies. Only `moving` parameters are
    trained, by default all.
    """
    device = inputs.device
    names = [name for name in starts[0] if moving is None or name in moving]
    stacked = {name: torch.stack([start[name] for start in starts]).to(device) for name in starts[0]}
    leaves = {name: stacked[name].requires_grad_() for name in names}
    optimizer = training.over(list(leaves.values()))
    alone = len(starts) == 1
    models = torch.arange(len(starts), device=device)[:, None]
    count = places.shape[1]
    for epoch in range(training.epochs):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_in(epoch)
        order = torch.stack(
            [own[torch.randperm(count, generator=random)] for own, random in zip(places, generators, strict=True)]
        )
        for begin in range(0, count, training.batch):
            drawn = order[:, begin : begin + training.batch].to(device)
            batch = inputs[models, drawn] if each_its_own else inputs[drawn]
            if training.augment:
                batch = torch.stack([augmented(one, random) for one, random in zip(batch, generators, strict=True)])
            if alone:
                logits = model({name: value[0] for name, value in stacked.items()}, batch[0])[None]
            else:
                logits = vmap(model)(stacked, batch)
            # The sum over models of each one's mean: they do not depend on one another.
            loss = F.cross_entropy(logits.flatten(0, 1), labels[drawn].flatten()) * len(starts)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return [{name: value[row].detach() for name, value in stacked.items()} for row in range(len(starts))]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images (B, C, H, W)`, each flipped by a fair coin and shifted by up to an eighth of its side.

    What is shifted in is zero (He et al. 2016, section 4.2, with 4 pixels of 32).
    """
    count, _, height, width = images.shape
    reach_y, reach_x = height // 8, width // 8
    flip = torch.rand(count, generator=generator) < 0.5
    down = torch.randint(0, 2 * reach_y + 1, (count,), generator=generator)
    right = torch.randint(0, 2 * reach_x + 1, (count,), generator=generator)
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    columns = right[:, None] + torch.where(flip[:, None], torch.arange(width).flip(0), torch.arange(width))
    rows = down[:, None] + torch.arange(height)
    device = images.device
    place = torch.arange(count, device=device)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[place, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def features(
    model: Model, parameters: Parameters, head: tuple[str, str], inputs: Tensor, at_once: int = 1024
) -> Tensor:
    """Return what the classifier `head` (see `linear_head`) is given, `(B, F)`, for `inputs (B, ...)`.

    The model is asked for its logits with the identity in the classifier's place, so that nothing need be known of
    it but the names of the classifier's weight and bias.
    """
    weight, bias = head
    width = parameters[weight].shape[1]
    as_they_are = {
        **parameters,
        weight: torch.eye(width, device=inputs.device),
        bias: torch.zeros(width, device=inputs.device),
    }
    with torch.no_grad():
        return torch.cat([model(as_they_are, some) for some in torch.split(inputs, at_once)])


def linear_head(model: Model, parameters: Parameters) -> tuple[str, str]:
    """Return the names of the classifier's weight `(ways, F)` and bias `(ways,)`; raises `ValueError` for another."""
    head = sorted(head_of(model), key=lambda name: -parameters[name].ndim)
    shapes = [tuple(parameters[name].shape) for name in head]
    if len(head) != 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise ValueError(f"the model's classifier must be a weight (ways, F) and a bias (ways,), got {shapes}")
    return head[0], head[1]
