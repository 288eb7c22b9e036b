"""Finding models, rules, data sets, defences and attacks by name."""

import importlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from metaleak.attacks.observation import Attack
from metaleak.clients.datasets import DataSet
from metaleak.clients.models import Model, TorchModule
from metaleak.clients.rules import Rule
from metaleak.defenses import Defence

Kind = Literal["models", "rules", "datasets", "defences", "attacks"]

_PROTOCOLS: dict[Kind, type] = {
    "models": Model,
    "rules": Rule,
    "datasets": DataSet,
    "defences": Defence,
    "attacks": Attack,
}


class Plugin(BaseModel):
    """A thing by name, and its settings.

    `name` is that of a Python entry point in the group `metaleak.<kind>`, or `module:Name`; every other key is
    passed to what it names, as a keyword. A model may also be a function that returns a `torch.nn.Module`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys beside `name`."""
        return dict(self.model_extra or {})

    def build(self, kind: Kind) -> Any:
        """Return the thing.

        Raises `ValueError` in one line that begins with the key at fault: `name`, or a setting that is not allowed.
        """
        factory = _find(kind, self.name)
        try:
            # Whatever a stranger's constructor draws from the global generator is the same in every process.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                thing = factory(**self.settings)
        except ValidationError as error:
            raise ValueError(first_problem(error, factory)) from None
        except TypeError as error:
            raise ValueError(f"name: {self.name} cannot be made from {self.settings}: {error}") from None
        if kind == "models" and isinstance(thing, nn.Module):
            try:
                thing = TorchModule(thing)
            except ValueError as error:
                raise ValueError(f"name: {self.name}: {error}") from None
        if not isinstance(thing, _PROTOCOLS[kind]):
            wanted = _PROTOCOLS[kind].__name__
            raise ValueError(f"name: {self.name} made a {type(thing).__name__}, which is not a {wanted}")
        return thing

    def resolved(self, kind: Kind) -> dict[str, Any]:
        """Return the name with every setting, defaults included, as plain data."""
        thing = self.build(kind)
        settings = thing.model_dump(mode="json") if isinstance(thing, BaseModel) else self.settings
        return {"name": self.name, **settings}


def first_problem(error: ValidationError, model: object = None) -> str:
    """Return pydantic's first complaint as `key: what is wrong, got value (and n more)`.

    With the `model` that was to be made, an unknown key comes with those that are allowed.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        allowed = _keys(model, problem["loc"][:-1])
        message = "unknown key" + (f", allowed are {', '.join(allowed)}" if allowed else "")
    got = "" if isinstance(problem["input"], Mapping) else f", got {problem['input']!r}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{key}: {message}{got}{more}" if key else f"{message}{more}"


def _keys(model: object, path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the model that lies at `path` inside `model`, none where that cannot be told."""
    for part in path:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        model = fields[part].annotation if isinstance(part, str) and part in fields else None
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _find(kind: Kind, name: str) -> Any:
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"name: {name}: {error}") from None
    found = _points(kind)
    if name not in found:
        raise ValueError(f"name: unknown {name!r}, allowed are {', '.join(sorted(found))} or module:Name")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"name: {name}'s entry point {found[name].value} cannot be loaded: {error}") from None


@lru_cache(maxsize=len(get_args(Kind)))
def _points(kind: Kind) -> Mapping[str, EntryPoint]:
    """Return the entry points of a kind by name: looked for once, which takes 30 ms."""
    return {point.name: point for point in entry_points(group=f"metaleak.{kind}")}
