"""Functions shared by the benchmarks of single images: loss gradients of one image, and its classical inversions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from metaleak.attacks.inversion.descent import descent, remaining
from metaleak.attacks.inversion.gradient_inversion import Schedule
from metaleak.attacks.inversion.matching import matching_loss, total_variation
from metaleak.attacks.inversion.starts import start_random
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the logits `(ways,)` of one image and its label to a scalar."""


def gradient_of(model: Model, parameters: Parameters, image: Tensor, label: Tensor, loss: Loss) -> Parameters:
    """Return the loss gradient of one `image (C, H, W)`."""
    found: Parameters = grad(lambda parameters: loss(model(parameters, image[None])[0], label))(parameters)
    return found


def starts(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Return the noise `(count, *shape)` from which images are sought."""
    return start_random(1, shape, torch.arange(count), seed)[:, 0]


def descended(
    schedule: Schedule, model: Model, parameters: Parameters, gradients: Parameters, labels: Tensor, start: Tensor
) -> Tensor:
    """Return the images `(T, C, H, W)` that a classical inversion finds from `start`, each from its own gradient.

    `gradients (T, ...)` are of cross-entropy, or of the logistic loss where labels are floats; labels are known. The
    losses, the total variation, the optimizers and the schedule are those of `metaleak.attacks.inversion`, whose
    attacks invert episodes and no single images.
    """
    loss = logistic if labels.is_floating_point() else cross_entropy
    sent = {name: value.float() for name, value in parameters.items()}
    seen = {name: value.float() for name, value in gradients.items()}

    def objective(image: Tensor, label: Tensor, gradient: Parameters) -> Tensor:
        made = gradient_of(model, sent, image, label, loss)
        distance = matching_loss(made, gradient, schedule.loss, schedule.layers)
        return distance + schedule.total_variation * total_variation(image[None])

    step, move, values, value = vmap(grad_and_value(objective)), descent(schedule.optimizer), start.float(), None
    for index in range(schedule.iterations):
        slopes, value = step(values, labels, seen)
        slopes = slopes.detach().sign() if schedule.signed else slopes.detach()
        rate = torch.full((1,) * values.ndim, schedule.rate * remaining(schedule.decay, index, schedule.iterations))
        values = move.advance({"images": values}, {"images": slopes}, value.detach(), {"images": rate})["images"]
        if schedule.boxed:
            values = values.clamp(0.0, 1.0)
    return values if value is None else move.settled({"images": values}, value.detach())[0]["images"]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of one image's logits, as torch's does, for labels under `vmap`."""
    return logits.logsumexp(0) - logits.gather(0, label[None])[0]


def logistic(logits: Tensor, label: Tensor) -> Tensor:
    """Return the binary logistic loss of one logit and a label of -1 or 1."""
    return torch.nn.functional.softplus(-label * logits[0])
