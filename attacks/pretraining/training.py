"""Supervised training of several models of one architecture in parallel, and the inputs of their classifiers."""

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
    """Settings of training on the cross-entropy: stochastic gradient descent, or Adam, which ignores `momentum`.

    `schedule` of the learning rate: `cosine` falls to 0 over all epochs, `step` multiplies it by `decay` every
    `every` epochs. `augment` flips images at random and shifts them by up to an eighth of their side, anew in every
    epoch.
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
        """Return the optimizer of these parameters; each entry's update depends on its own gradient alone."""
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
    """Return M models, trained from `starts`, each on its own examples `places (M, n)` among `inputs (N, ...)`.

    With `each_its_own` every model has inputs of its own, `(M, N, ...)`. `labels (N,)` int64. The order of a model's
    examples and its augmentations come from its own CPU generator, so that the result does not depend, up to
    rounding, on which models are trained together. Computes on the device of `inputs`. `moving` names the parameters
    that are trained, by default all.
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
            # The sum over models of each one's mean loss, so that their gradients do not mix.
            loss = F.cross_entropy(logits.flatten(0, 1), labels[drawn].flatten()) * len(starts)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return [{name: value[row].detach() for name, value in stacked.items()} for row in range(len(starts))]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images (B, C, H, W)`, each flipped with probability 1/2 and shifted by up to an eighth of its side.

    Pixels that are shifted in are zero (He et al. 2016, section 4.2, with 4 pixels of 32).
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
    """Return the inputs of the classifier `head` (see `linear_head`) for `inputs (B, ...)`, `(B, F)`.

    They are the logits of the model with the identity as its classifier, so only the names of the classifier's weight
    and bias need be known.
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
    """Return the names of the classifier's weight `(ways, F)` and bias `(ways,)`.

    Raises `ValueError` if the model's head is not of this form.
    """
    head = sorted(head_of(model), key=lambda name: -parameters[name].ndim)
    shapes = [tuple(parameters[name].shape) for name in head]
    if len(head) != 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise ValueError(f"the model's classifier must be a weight (ways, F) and a bias (ways,), got {shapes}")
    return head[0], head[1]
