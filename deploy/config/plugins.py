"""Finding models, rules, data sets, defenses and attacks by name."""

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Self, get_args, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from torch import nn
from typing_extensions import get_protocol_members

from metaleak.attacks.attack import AsksMembership, Reconstructs
from metaleak.attacks.pretraining.evidence import PretrainingAttack
from metaleak.attacks.pretraining.personal_models import AsksReleasedModels
from metaleak.clients.datasets import DataSet
from metaleak.clients.models import Model, TorchModule
from metaleak.clients.rules import Rule
from metaleak.defenses import Defense
from metaleak.deploy.config.unknown import did_you_mean, unknown

Kind = Literal["models", "rules", "datasets", "defenses", "attacks", "pretraining_attacks"]

_PROTOCOLS: dict[Kind, tuple[type, ...]] = {
    "models": (Model,),
    "rules": (Rule,),
    "datasets": (DataSet,),
    "defenses": (Defense,),
    "attacks": (AsksMembership, Reconstructs, AsksReleasedModels),
    "pretraining_attacks": (PretrainingAttack,),
}
"""The protocols of each kind; a plug-in must follow one of them."""


def is_code(name: object) -> bool:
    """Return whether a plug-in's name is a `module:Name`, which is imported and called."""
    return isinstance(name, str) and ":" in name


class Plugin(BaseModel):
    """A plug-in by name, and its settings.

    `name` is that of a Python entry point in the group `metaleak.<kind>`, or `module:Name`; every other key is
    passed to what it names, as a keyword. What `module:Name` stands for is called only when it is a class with all
    members of the kind's protocol, or a function whose return annotation is such a class; for models also a
    `torch.nn.Module`.

    The built object is cached. It is neither compared nor pickled, and a copy, whose settings may differ, builds
    its own.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    _built: dict[Kind, Any] = PrivateAttr(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys beside `name`."""
        return dict(self.model_extra or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plugin) and (self.name, self.settings) == (other.name, other.settings)

    def __hash__(self) -> int:
        return hash(self.name)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "__pydantic_private__": {"_built": {}}}

    def __copy__(self) -> Self:
        return type(self)(name=self.name, **self.settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return type(self)(name=self.name, **deepcopy(self.settings, memo))

    def built(self, kind: Kind) -> Any:
        """Return the plug-in's object, which the first call builds; raises as `build` does."""
        if kind not in self._built:
            self._built[kind] = self.build(kind)
        return self._built[kind]

    def build(self, kind: Kind) -> Any:
        """Return a new object of the plug-in.

        Raises `ValueError` in one line that begins with the key at fault: `name`, or a setting that is not allowed.
        """
        factory = _find(kind, self.name)
        _must_take(factory, self.settings)
        try:
            # What a third party's constructor draws from the global generator must be the same in every process.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                thing = factory(**self.settings)
        except ValidationError as error:
            raise ValueError(first_problem(error, _made_by(factory))) from None
        except TypeError as error:
            raise ValueError(f"name: {self.name} cannot be made from {self.settings}: {error}") from None
        if kind == "models" and isinstance(thing, nn.Module):
            try:
                thing = TorchModule(thing)
            except ValueError as error:
                raise ValueError(f"name: {self.name}: {error}") from None
        if not isinstance(thing, _PROTOCOLS[kind]):
            raise ValueError(f"name: {self.name} made a {type(thing).__name__}, which is not a {_wanted(kind)}")
        return thing

    def resolved(self, kind: Kind) -> dict[str, Any]:
        """Return the name with every setting, defaults included, as plain data."""
        thing = self.built(kind)
        settings = thing.model_dump(mode="json") if isinstance(thing, BaseModel) else self.settings
        return {"name": self.name, **settings}


def must_be_buildable(plugins: Iterable[tuple[str, Kind, Plugin]]) -> None:
    """Build each plug-in, given with its key and kind; raises `ValueError` in one line, the key first."""
    for key, kind, plugin in plugins:
        try:
            plugin.built(kind)
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from None


def first_problem(error: ValidationError, model: object = None) -> str:
    """Return pydantic's first complaint as `key: what is wrong, got value (and n more)`.

    An unknown key or choice comes with the nearest one; with the `model` that was to be made, a key also with all
    that are allowed.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        *path, last = problem["loc"]
        message = unknown("key", last, _keys(model, tuple(path)))
    elif problem["type"] == "literal_error":
        nearest = did_you_mean(problem["input"], re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
        message += f", {nearest}" if nearest else ""
    got = "" if isinstance(problem["input"], Mapping) else f", got {problem['input']!r}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{key}: {message}{got}{more}" if key else f"{message}{more}"


def _keys(model: object, path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the model that lies at `path` inside `model`, none where that cannot be told."""
    for part in path:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        model = fields[part].annotation if isinstance(part, str) and part in fields else None
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def settings_of(kind: Kind, name: str) -> list[str]:
    """Return the keys that what is called `name` takes beside it, sorted; none where that cannot be told.

    Raises `ValueError` in one line for a name that stands for nothing.
    """
    factory = _find(kind, name)
    given = [one for one in inspect.signature(factory).parameters.values() if one.kind != one.VAR_KEYWORD]
    return sorted(one.name for one in given) or _keys(_made_by(factory), ())


def _must_take(factory: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a setting that a factory has no parameter for; pydantic models check their own settings."""
    if isinstance(factory, type) and issubclass(factory, BaseModel):
        return
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        # Some built-in callables have no signature.
        return
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        return
    known = [one.name for one in parameters if one.kind != one.VAR_POSITIONAL]
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"{key}: {unknown('key', key, known)}, got {value!r}")


def _find(kind: Kind, name: str) -> Any:
    if is_code(name):
        module, _, attribute = name.partition(":")
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(f"name: {name}: {error}") from None
        _must_make(kind, name, factory)
        return factory
    found = _points(kind)
    if name not in found:
        raise ValueError(f"name: {unknown('name', name, found, also='module:Name')}")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"name: {name}'s entry point {found[name].value} cannot be loaded: {error}") from None


def _must_make(kind: Kind, name: str, factory: object) -> None:
    """Refuse a factory that cannot make a plug-in of this kind, before it is called: it may be any function."""
    made, wanted = _made_by(factory), _wanted(kind)
    if kind == "models" and isinstance(made, type) and issubclass(made, nn.Module):
        return
    if made is None:
        raise ValueError(
            f"name: {name} is neither a class nor a function that says in its return annotation which "
            f"{wanted} it makes"
        )
    if made in _PROTOCOLS[kind]:
        return
    members = map(get_protocol_members, _PROTOCOLS[kind])
    missing = [sorted(name for name in needed if not _has(made, name)) for needed in members]
    if all(missing):
        lacking = " or ".join(", ".join(names) for names in sorted(missing, key=len))
        raise ValueError(f"name: {name} is not a {wanted}: it has no {lacking}")


def _wanted(kind: Kind) -> str:
    """Return in words what a plug-in of this kind must be."""
    names = [protocol.__name__ for protocol in _PROTOCOLS[kind]]
    return " or ".join([*names, "torch.nn.Module"] if kind == "models" else names)


def _made_by(factory: object) -> type | None:
    """Return the class of what a factory makes: itself, or what a function's return annotation says."""
    if not inspect.isfunction(factory):
        return factory if isinstance(factory, type) else None
    try:
        made = get_type_hints(factory).get("return")
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None
    return made if isinstance(made, type) else None


def _has(made: type, name: str) -> bool:
    """Return whether instances of a class have the attribute: it stands in the class, or is annotated there.

    Attributes of the class object itself, such as `__call__`, do not count: every class has these.
    """
    return any(name in vars(base) or name in inspect.get_annotations(base) for base in made.__mro__)


@lru_cache(maxsize=len(get_args(Kind)))
def _points(kind: Kind) -> Mapping[str, EntryPoint]:
    """Return the entry points of a kind by name, cached: the search takes 30 ms."""
    return {point.name: point for point in entry_points(group=f"metaleak.{kind}")}
