"""Write the pages of the commands and of the keys from the code: `python docs/reference_pages.py`."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, TypeAdapter
from typer.main import get_command
from typer.models import ParameterInfo

from metaleak.deploy.cli import app
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.pretraining.study import Study

FOLDER = Path(__file__).parent
PAGES = {"Experiments": Experiment, "Suites": Suite, "Studies of pretraining data": Study}

OF_ALL = """\
Every command has `--help` with an example, and `metaleak --debug COMMAND` shows the traceback of an error. All that
compute have `--json`. Tables fit the terminal, `--wide` shows all columns, and `NO_COLOR=1` leaves the colors out.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage, a wrong file or value too |
| 130 | interrupted, by Ctrl-C or SIGTERM |

**What is safe to open.** The experiment and suite files that you pass may name code (`module:Name`): read those of
strangers first, as you would their scripts. Run and suite directories are safe to open: what they name of code runs
only with `--trust` (Python: `run.experiment(trust=True)`), a Ray cluster that they name is joined only with it, and
links in them are refused.
"""


def commands() -> str:
    """Return the page of all commands with their options."""
    lines = ["# Commands", "", "Written by `docs/reference_pages.py` from the command line itself.", "", OF_ALL]
    for name, command in _commands(get_command(app), "metaleak"):
        lines += [f"## `{name}`", "", *(line.strip() for line in (command.help or "").strip().splitlines()), ""]
        lines += ["| option | what it does |", "|---|---|"]
        for parameter in command.params:
            shown = ", ".join(parameter.opts)
            if isinstance(parameter, click.Argument):
                shown = parameter.metavar or str(parameter.name).upper()
            lines.append(f"| `{shown}` | {_help(command, str(parameter.name))} |")
        lines.append("")
    return "\n".join(lines)


def _help(command: click.Command, name: str) -> str:
    """Return what is written of a parameter; typer 0.20 loses that of an argument with click 8.5 and later."""
    assert command.callback is not None
    annotation = inspect.signature(command.callback).parameters[name].annotation
    return next(str(written.help) for written in annotation.__metadata__ if isinstance(written, ParameterInfo))


def settings() -> str:
    """Return the page of all keys of the files: by part, with what is allowed and the defaults."""
    lines = ["# Keys of the YAML files", ""]
    lines += ["Written by `docs/reference_pages.py` from the models that check the files.", ""]
    lines += ["A plug-in, such as a model or a defense, is a name or `{name: ..., its settings}`.", ""]
    for title, model in PAGES.items():
        lines += [f"## {title}", "", *_part(model, "")]
    return "\n".join(lines)


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
        return f"list of {_allowed(schema.get('items', {}), whole)}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
    return " ".join([words.get(kind, kind), *limits])


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
