"""The last layer from its gradient: what it was given, and the loss gradient at the logits."""

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
"""The loss of one example: `logistic`, of one logit z and a label y of -1 or 1, is log(1 + exp(-y z))."""

TURNING_POINT = 1.2784645427610738
"""Where u / (1 + e^u) is largest: two values of u have the same loss gradient times logit around it."""

_LARGEST = 700.0
"""The largest u that is looked at: e^u is finite in float64."""

_PLACES = 400
"""Among how many scales the roots of the cross-entropy's equation are looked for."""


@dataclass(frozen=True)
class Candidate:
    """One solution for the last layer: its input `x (n,)` and the loss gradient `dz (logits,)`."""

    x: Tensor
    dz: Tensor


def candidates(stage: Stage, gradients: Parameters, loss: Loss) -> list[Candidate]:
    """Return all solutions for the last layer of one example's gradient, in no order.

    With a bias the loss gradient is the bias's own and there is one. Without, a scalar equation decides: for
    `logistic` that of Zhu and Blaschko (2021, section 3.1), `-u / (1 + e^u) = <W, dW>` for u = y z, with two roots
    where the value is in (-0.278, 0), and both labels; for `cross_entropy` that of the label's probability, of whose
    roots those are solutions that match the whole loss gradient up to the precision of `gradients`. Raises
    `ValueError` for a last layer that is not dense, a gradient of zeros, and one that no single example can have.
    """
    if stage.operator.sliding is not None or stage.activation.name != "identity":
        raise ValueError(f"the last layer, {stage.name}, must be linear with nothing after it")
    weight, gradient = stage.operator.weight, gradients[stage.weight_name]
    logits = weight.shape[0]
    if (loss == "logistic") != (logits == 1):
        needed = "one logit" if loss == "logistic" else "two logits or more"
        raise ValueError(f"the loss {loss} needs {needed}, and the last layer, {stage.name}, has {logits}")
    if not bool(gradient.any()):
        raise ValueError(f"the gradient of the last layer, {stage.name}, is zero: it determines nothing")
    if stage.bias_name is not None:
        dz = gradients[stage.bias_name]
        return [Candidate(gradient.mT @ dz / dz.square().sum(), dz)]
    found = list(_logistic(weight, gradient) if loss == "logistic" else _cross_entropy(weight, gradient))
    if not found:
        raise ValueError(
            f"no example has this gradient of the last layer, {stage.name}: it is of several, or was changed"
        )
    return found


def logistic_roots(value: float) -> list[float]:
    """Return all u with `u / (1 + e^u) = value`: none above 0.278, two between 0 and that, else one."""

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
    """Yield the solutions of `softmax(W x) - label = dz` along the one direction that the gradient's columns have."""
    precision = torch.finfo(gradient.dtype).eps
    # Near a double root the scale is only known to the root of the precision.
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
