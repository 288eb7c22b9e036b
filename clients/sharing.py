"""Which parameters a federation shares, and which others its learners compute with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model, dense_layers_of, head_of
from metaleak.clients.rules import Rule, adapted_names
from metaleak.defenses import CLIP_NAME, AdaptsClip, Defense, adapting

Patterns = tuple[str, ...]
"""Patterns of parameters' names, such as `layer1.*`, as `fnmatch` reads them."""

EVERYTHING: Patterns = ("*",)
"""The patterns of a federation that shares all parameters."""

_LISTED = 6
_LARGEST_LOG = 27.0
"""The largest absolute logarithm of a clipping norm, which is between 1e-12 and 1e12."""


def matching(patterns: Patterns, names: Iterable[str], key: str = "shares") -> tuple[str, ...]:
    """Return those of `names` that match a pattern, in their order.

    Raises `ValueError` in one line, which begins with `key`, for a pattern that matches no name.
    """
    known = tuple(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            more = ", ..." if len(known) > _LISTED else ""
            raise ValueError(
                f"{key}: no parameter is called {pattern!r}; there are {', '.join(known[:_LISTED])}{more}"
            )
    return tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))


def shared_part(shares: Patterns, parameters: Parameters) -> Parameters:
    """Return the `parameters` that are shared; raises `ValueError` as `matching` does.

    The clipping norm of a defense is always shared.
    """
    if shares == EVERYTHING:
        return parameters
    clip = {CLIP_NAME: parameters[CLIP_NAME]} if CLIP_NAME in parameters else {}
    return {name: parameters[name] for name in matching(shares, without_clip(parameters))} | clip


def with_clip(defenses: Iterable[Defense], parameters: Parameters) -> Parameters:
    """Return all `parameters`, together with the clipping norm of a defense that adapts it, if there is one."""
    adapts = adapting(defenses)
    if adapts is None or CLIP_NAME in parameters:
        return parameters
    device = next(iter(parameters.values())).device
    return {**parameters, CLIP_NAME: torch.tensor([math.log(adapts.sent_clip)], device=device)}


def without_clip(parameters: Parameters) -> Parameters:
    """Return the `parameters` of the model, without a clipping norm."""
    return {name: value for name, value in parameters.items() if name != CLIP_NAME}


def told_clip(defenses: Sequence[Defense], parameters: Parameters) -> tuple[Defense, ...]:
    """Return the `defenses` with the adaptive clipping norm that the server sent among `parameters`, if there is one.

    Raises `ValueError` in one line for a norm that is not finite and positive.
    """
    if CLIP_NAME not in parameters:
        return tuple(defenses)
    log = float(parameters[CLIP_NAME])
    if not math.isfinite(log):
        raise ValueError(f"{CLIP_NAME}: the server must send the logarithm of a finite, positive norm, got {log}")
    # Any finite number that a server sends becomes a norm that the defense allows.
    norm = math.exp(min(max(log, -_LARGEST_LOG), _LARGEST_LOG))
    return tuple(
        one.with_sent_clip(norm) if isinstance(one, AdaptsClip) and one.adapt is not None else one for one in defenses
    )


def computed_part(shares: Patterns, model: Model, rule: Rule, parameters: Parameters) -> tuple[Model, Parameters]:
    """Return the model and the parameters with which `rule` computes a learner's meta-gradient.

    The parameters are the shared ones and those that the rule adapts. All others become constants of the returned
    model, since their derivatives are not needed.
    """
    parameters = without_clip(parameters)
    if shares == EVERYTHING:
        return model, parameters
    moving = {*matching(shares, parameters), *adapted_names(rule, model, parameters)}
    constants = {name: value for name, value in parameters.items() if name not in moving}
    if not constants:
        return model, parameters
    return WithConstants(model, constants), {name: parameters[name] for name in parameters if name in moving}


@dataclass(frozen=True, eq=False)
class WithConstants:
    """A `model` with some of its parameters held constant."""

    model: Model
    constants: Parameters = field(repr=False)

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the classifier's parameters that are not constants."""
        return tuple(name for name in head_of(self.model) if name not in self.constants)

    @property
    def dense_layers(self) -> Mapping[str, str | None] | None:
        """The dense layers whose weights are not constants; `None` if a layer has a constant weight but not bias."""
        layers = dense_layers_of(self.model) or {}
        moving = {weight: bias for weight, bias in layers.items() if weight not in self.constants}
        others = {bias for weight, bias in layers.items() if weight in self.constants and bias is not None}
        alone = not others <= self.constants.keys()
        return None if alone or not moving else moving

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: object) -> Parameters:
        """Raise `RuntimeError`, because the constants belong to one initialization."""
        raise RuntimeError("a model with constants is not initialized again")

    def __call__(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """Return the model's logits `(B, ways)` for `inputs (B, ...)`."""
        return self.model({**self.constants, **parameters}, inputs)
