"""Write the reference pages, commands, keys and plug-ins, from the code: `python docs/reference_pages.py`."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_type_hints

import click
from pydantic import BaseModel, TypeAdapter

from metaleak.deploy.cli import command_line
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Kind, Plugin
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.pretraining.study import Study

FOLDER = Path(__file__).parent
PAGES = {"Experiments": Experiment, "Suites": Suite, "Studies of pretraining data": Study}
GROUPS: Mapping[str, tuple[Kind, str]] = {
    "Data sets": ("datasets", "`data`, and in a study `pool.data` and `downstream.data`"),
    "Models": ("models", "`model`"),
    "Rules": ("rules", "`rule`"),
    "Defenses": ("defenses", "`defenses`"),
    "Attacks": ("attacks", "`attacks`"),
    "Attacks on pretraining data": ("pretraining_attacks", "`attacks` in a study"),
}

OF_ALL = """\
Every command has `--help` with an example, and `metaleak --debug COMMAND` shows the traceback of an error. All
commands that compute have `--json`. Tables fit the terminal, `--wide` shows all columns, and `NO_COLOR=1` turns
colors off. `metaleak --version` prints the version. The option `--install-completion` of `metaleak` installs
completion of commands and options for your shell.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage, including a wrong file or value |
| 130 | interrupted, by Ctrl-C or SIGTERM |

**What is safe to open.** The experiment and suite files that you pass may name code (`module:Name`), which is
run: read files from strangers first, as you would read their scripts. Run and suite directories are safe to
open: code that they name is run, and a Ray cluster that they name is joined, only with `--trust` (in Python
`run.experiment(trust=True)`), and links in them are refused.
"""


def commands() -> str:
    """Return the page of all commands with their options."""
    lines = ["# Commands", "", "Written by `docs/reference_pages.py` from the command line itself.", "", OF_ALL]
    for name, command in _commands(command_line(), "metaleak"):
        lines += [f"## `{name}`", "", *(line.strip() for line in (command.help or "").strip().splitlines()), ""]
        lines += ["| option | what it does |", "|---|---|"]
        for parameter in command.params:
            shown = ", ".join(parameter.opts)
            if isinstance(parameter, click.Argument):
                shown = parameter.metavar or str(parameter.name).upper()
            lines.append(f"| `{shown}` | {getattr(parameter, 'help', None)} |")
        lines.append("")
    return "\n".join(lines)


def settings() -> str:
    """Return the page of all keys of the files: by part, with what is allowed and the defaults."""
    lines = ["# Keys of the YAML files", ""]
    lines += ["Written by `docs/reference_pages.py` from the models that check the files.", ""]
    lines += [
        "A plug-in, such as a model or a defense, is a name or `{name: ..., its settings}`. The settings of each"
    ]
    lines += ["are in [settings of plug-ins](plugins.md).", ""]
    for title, model in PAGES.items():
        lines += [f"## {title}", "", *_part(model, "")]
    return "\n".join(lines)


def plugins() -> str:
    """Return the page of the built-in plug-ins: what each does, its settings, what they may be, and the defaults."""
    lines = ["# Settings of plug-ins", "", "Written by `docs/reference_pages.py` from the code of the plug-ins.", ""]
    lines += ["Each stands in a file as its name, or as `{name: ..., setting: value}`. What to choose: the"]
    lines += ["[catalog](catalog.md). How to write your own: [extending](extending.md).", ""]
    for title, (kind, key) in GROUPS.items():
        lines += [f"## {title}", "", f"Under the key {key}.", ""]
        points = sorted(entry_points(group=f"metaleak.{kind}"), key=lambda point: point.name)
        described = {point.load(): point.name for point in points if isinstance(point.load(), type)}
        for point in points:
            lines += [f"### `{point.name}`", "", *_plugin(kind, point, described)]
    return "\n".join(lines)


def _plugin(kind: Kind, point: EntryPoint, described: dict[type, str]) -> list[str]:
    """Return the section of a plug-in; a class that several functions make is `described` with the first of them."""
    factory = point.load()
    model = get_type_hints(factory)["return"] if inspect.isfunction(factory) else factory
    lines = _described(factory)
    if factory is not model:
        before = described.setdefault(model, point.name)
        lines += _described(model) if before == point.name else [f"The settings are those of `{before}`.", ""]
    schema = model.model_json_schema()
    try:
        defaults = Plugin(name=point.name).resolved(kind)
    except ValueError:  # It has settings without a default.
        defaults = {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
    if not model.model_fields:
        return [*lines, "It has no settings.", ""]
    lines += ["| setting | allowed | default |", "|---|---|---|"]
    for name in model.model_fields:
        default = f"`{json.dumps(defaults[name], default=str)}`" if name in defaults else "required"
        lines.append(f"| `{name}` | {_allowed(schema['properties'][name], schema)} | {default} |")
    return [*lines, ""]


def _described(thing: object) -> list[str]:
    """Return a docstring up to its examples, as Markdown."""
    text = re.split(r"\n+(?:Examples?:|>>>)", inspect.cleandoc(thing.__doc__ or ""))[0]
    # An indented section, such as `Raises:`, would be shown as code.
    text = re.sub(r"^(\w[\w ]{2,30}):?\n(?= {4}\S)", r"**\1.** ", text, flags=re.MULTILINE)
    return [*(line.strip() for line in text.replace(".** " + " " * 4, ".** ").splitlines()), ""]


def _part(model: type[BaseModel], prefix: str) -> list[str]:
    schema = model.model_json_schema()
    inner = {name: field.annotation for name, field in model.model_fields.items() if _is_part(field.annotation)}
    lines = [*inspect.cleandoc(model.__doc__ or "").splitlines(), ""]
    own = [name for name in model.model_fields if name not in inner]
    if own:
        lines += ["| key | allowed | default |", "|---|---|---|"]
        lines += [
            f"| `{prefix}{name}` | {_allowed(schema['properties'][name], schema)} | {_default(model, name)} |"
            for name in own
        ]
        lines.append("")
    for name, part in inner.items():
        lines += [f"### `{prefix}{name}`", "", *_part(part, f"{prefix}{name}.")]
    return lines


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Plugin


def _allowed(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "plug-in" if name == "Plugin" else _allowed(whole["$defs"][name], whole)
    if "anyOf" in schema:
        return ", or ".join(_allowed(one, whole) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "anything")
    if kind == "array":
        entries = _allowed(schema.get("items", {}), whole)
        return "list of " + re.sub(r"^(plug-in|whole number|number|text)\b", r"\1s", entries)
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {_plain(schema[key])}" for key, sign in bounds.items() if key in schema)
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
    return " ".join(part for part in (words.get(kind, kind), limits) if part)


def _plain(number: float) -> str:
    """Return a bound as a reader writes it: 2147483648, not 2.14748e+09."""
    return str(int(number)) if number == int(number) and number < 1e10 else f"{number:g}"


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            yield from _commands(inner, f"{name} {part}")
    else:
        yield name, command


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return f"`{json.dumps(plain)}`".replace("|", "\\|")


if __name__ == "__main__":
    (FOLDER / "commands.md").write_text(commands())
    (FOLDER / "settings.md").write_text(settings())
    (FOLDER / "plugins.md").write_text(plugins())
