"""Which parameters a federation shares, and with which of the others its learners compute."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model, head_of
from metaleak.clients.rules import Rule, adapted_names

Patterns = tuple[str, ...]
"""Patterns of parameters' names, such as `layer1.*`, as `fnmatch` reads them."""

EVERYTHING: Patterns = ("*",)
"""The patterns of a federation that shares all parameters."""

_LISTED = 6


def matching(patterns: Patterns, names: Iterable[str], key: str = "shares") -> tuple[str, ...]:
    """Return those of `names` that a pattern matches, in their order.

    Raises `ValueError` in one line, which begins with `key`, for a pattern that matches none.
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
    """Return the `parameters` that are shared; raises `ValueError` as `matching` does."""
    if shares == EVERYTHING:
        return parameters
    return {name: parameters[name] for name in matching(shares, parameters)}


def computed_part(shares: Patterns, model: Model, rule: Rule, parameters: Parameters) -> tuple[Model, Parameters]:
    """Return what `rule` computes a learner's meta-gradient with: a model, and the parameters that are its arguments.

    These are the shared ones and those that the rule adapts. All others are constants of the model that is returned:
    their derivatives would be computed for nothing.
    """
    if shares == EVERYTHING:
        return model, parameters
    moving = {*matching(shares, parameters), *adapted_names(rule, model, parameters)}
    constants = {name: value for name, value in parameters.items() if name not in moving}
    if not constants:
        return model, parameters
    return WithConstants(model, constants), {name: parameters[name] for name in parameters if name in moving}


@dataclass(frozen=True, eq=False)
class WithConstants:
    """A `model` some of whose parameters are `constants`."""

    model: Model
    constants: Parameters = field(repr=False)

    @property
    def head(self) -> tuple[str, ...]:
        """Return the names of the classifier's parameters, without those that are constants."""
        return tuple(name for name in head_of(self.model) if name not in self.constants)

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: object) -> Parameters:
        """Refuse: the constants belong to one initialization. Raises `RuntimeError`."""
        raise RuntimeError("a model with constants is not initialized again")

    def __call__(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """Return the model's logits `(B, ways)` for `inputs (B, ...)`."""
        return self.model({**self.constants, **parameters}, inputs)
