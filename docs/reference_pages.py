"""Write the pages of the commands and of the keys from the code: `python docs/reference_pages.py`."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, TypeAdapter
from typer.main import get_command

from metaleak.deploy.cli import app
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.pretraining.study import Study

FOLDER = Path(__file__).parent
PAGES = {"Experiments": Experiment, "Suites": Suite, "Studies of pretraining data": Study}


def commands() -> str:
    """Return the page of all commands with their options."""
    lines = ["# Commands", "", "Written by `docs/reference_pages.py` from the command line itself.", ""]
    for name, command in _commands(get_command(app), "metaleak"):
        lines += [f"## `{name}`", "", *(line.strip() for line in (command.help or "").strip().splitlines()), ""]
        lines += ["| option | what it does |", "|---|---|"]
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                shown, about = parameter.metavar or str(parameter.name).upper(), ""
            else:
                shown, about = ", ".join(parameter.opts), str(getattr(parameter, "help", "") or "")
            lines.append(f"| `{shown}` | {about} |")
        lines.append("")
    return "\n".join(lines)


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
