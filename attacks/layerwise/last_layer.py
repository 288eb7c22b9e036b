"""The last layer's input and the loss gradient at the logits, from the last layer's gradient."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from scipy.optimize import brentq
from torch import Tensor

from metaleak.attacks.layerwise.chain import Stage
from metaleak.clients.episode import Parameters

Loss = Literal["logistic", "cross_entropy"]
"""The loss of one example; `logistic` is log(1 + exp(-y z)) for one logit z and a label y of -1 or 1."""

TURNING_POINT = 1.2784645427610738
"""The u at which u / (1 + e^u) is largest; values below its maximum are attained on both sides of it."""

_LARGEST = 700.0
"""The largest u considered: e^u is finite in float64."""

_PLACES = 400
"""The number of scales between which roots of the cross-entropy's equation are bracketed."""


@dataclass(frozen=True)
class Candidate:
    """One solution for the last layer: its input `x (n,)` and the loss gradient `dz (logits,)`."""

    x: Tensor
    dz: Tensor


def candidates(stage: Stage, gradients: Parameters, loss: Loss) -> list[Candidate]:
    """Return all solutions for the last layer from the gradient of one example, in no particular order.

    With a bias there is one solution, since the loss gradient is that of the bias. Without a bias, a scalar equation
    is solved. For `logistic` it is `-u / (1 + e^u) = <W, dW>` with u = y z (Zhu and Blaschko 2021, section 3.1),
    which has two roots if the value is in (-0.278, 0); both labels are possible. For `cross_entropy` it is the
    equation of the label's probability; those of its roots are solutions that match the whole loss gradient up to the
    precision of `gradients`. Raises `ValueError` for a last layer that is not dense, for a gradient of zeros, and for
    one that no single example can have.
    """
    if stage.operator.sliding is not None or stage.activation.name != "identity":
        raise ValueError(f"the last layer, {stage.name}, must be linear, without an activation after it")
    weight, gradient = stage.operator.weight, gradients[stage.weight_name]
    logits = weight.shape[0]
    if (loss == "logistic") != (logits == 1):
        needed = "one logit" if loss == "logistic" else "two logits or more"
        raise ValueError(f"the loss {loss} needs {needed}, and the last layer, {stage.name}, has {logits}")
    if not bool(gradient.any()):
        raise ValueError(f"the gradient of the last layer, {stage.name}, is zero, so that nothing can be recovered")
    if stage.bias_name is not None:
        dz = gradients[stage.bias_name]
        return [Candidate(gradient.mT @ dz / dz.square().sum(), dz)]
    found = list(_logistic(weight, gradient) if loss == "logistic" else _cross_entropy(weight, gradient))
    if not found:
        raise ValueError(
            f"no single example has this gradient of the last layer, {stage.name}: it is of several, or was changed"
        )
    return found


def logistic_roots(value: float) -> list[float]:
    """Return all u with `u / (1 + e^u) = value`: none if it is above 0.278, two between 0 and 0.278, else one."""

    def difference(u: float) -> float:
        return u / (1.0 + math.exp(u)) - value

    if value <= 0:
        return [_root(difference, min(2 * value, -1.0) - 1.0, 0.0)]
    if difference(TURNING_POINT) < 0:
        return []
    return [_root(difference, 0.0, TURNING_POINT), _root(difference, TURNING_POINT, _LARGEST)]


def _logistic(weight: Tensor, gradient: Tensor) -> Iterator[Candidate]:
    for u in logistic_roots(-float((weight.double() * gradient.double()).sum())):
        slope = 1.0 / (1.0 + math.exp(u))
        for label in (-1.0, 1.0):
            dz = torch.full((1,), -label * slope, dtype=weight.dtype)
            yield Candidate(gradient[0] / dz, dz)


def _cross_entropy(weight: Tensor, gradient: Tensor) -> Iterator[Candidate]:
    """Yield the solutions of `softmax(W x) - label = dz` with dz along the direction of the gradient's columns."""
    precision = torch.finfo(gradient.dtype).eps
    # Near a double root the scale is only known to the square root of the precision.
    tolerance = 10 * math.sqrt(precision)
    left, size, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    direction, row = left[:, 0], size[0] * right[0]
    for sign in (1.0, -1.0):
        v, q = sign * direction, sign * row
        # A probability below the precision may have either sign.
        if int((v < -tolerance).sum()) != 1:
            continue
        label = int(v.argmin())
        scores, most = weight.double() @ q, 1.0 / float(-v[label])

        def missed(log_scale: float, scores: Tensor = scores, v: Tensor = v, label: int = label) -> float:
            scale = math.exp(log_scale)
            others = torch.cat([scores[:label], scores[label + 1 :]]) - scores[label]
            # 1 - p = sigmoid(logsumexp of the others' distances), precise where p is near 1.
            wrong = torch.sigmoid(torch.logsumexp(others / scale, dim=0))
            return float(wrong + scale * v[label])

        places = torch.linspace(math.log(most) - 40.0, math.log(most) + 1e-9, _PLACES, dtype=torch.float64).tolist()
        for low, high in pairwise(places):
            if (missed(low) < 0) != (missed(high) < 0):
                scale = math.exp(_root(missed, low, high))
                dz, made = scale * v, torch.softmax(scores / scale, dim=0)
                made[label] -= 1.0
                if float((made - dz).norm()) <= tolerance * float(dz.norm()) + 10 * precision:
                    yield Candidate((q / scale).to(weight.dtype), dz.to(weight.dtype))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high, xtol=1e-15, rtol=8.9e-16, maxiter=500))
