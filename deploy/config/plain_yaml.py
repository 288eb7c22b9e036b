"""YAML as plain data: texts, numbers, lists and mappings, in time and memory proportional to the file's length.

Not allowed are tags, aliases (with which a few lines can stand for millions), repeated keys and control characters.
Numbers to the base 60 (`1:30`) and dates, as which YAML 1.1 would read some texts, stay texts.
"""

import re
from typing import Any, ClassVar

import yaml

from metaleak.deploy.printable import unprintable

_LONGEST_NUMBER = 40
"""Characters; converting one takes time that grows with the square of its length."""

_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}
"""As in YAML 1.1 but for the base 60: what PyYAML writes plainly as text stays text."""

_DROPPED = (*_NUMBERS, *(f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "merge", "value")))


class _PlainLoader(yaml.SafeLoader):
    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012 (the library's stubs have it so)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", None)
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "tags are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if unprintable(text):
            raise _refused(node, "control characters are not allowed")
        return text

    def number(self, node: Any) -> Any:
        if len(node.value) > _LONGEST_NUMBER:
            raise _refused(node, f"a number has at most {_LONGEST_NUMBER} characters, not {len(node.value)}")
        text = self.construct_scalar(node).replace("_", "").lower()
        if node.tag.endswith("int"):
            return int(text, 16 if "x" in text else 10)
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def sequence(self, node: Any) -> list[Any]:
        return [self.construct_object(one) for one in node.value]

    def mapping(self, node: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused(key_node, "a key must be a text or a number")
            key = self.construct_object(key_node)
            if key in found:
                raise _refused(key_node, f"the key {key!r} stands there twice")
            found[key] = self.construct_object(value_node)
        return found


def _refused(node: Any, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _tag, _pattern in _NUMBERS.items():
    _PlainLoader.add_implicit_resolver(_tag, _pattern, list("-+0123456789."))
for _name, _constructor in {
    "int": _PlainLoader.number,
    "float": _PlainLoader.number,
    "null": _PlainLoader.construct_yaml_null,
    "bool": _PlainLoader.construct_yaml_bool,
    "str": _PlainLoader.construct_scalar,
    "seq": _PlainLoader.sequence,
    "map": _PlainLoader.mapping,
}.items():
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_name}", _constructor)


def parse_yaml(text: str) -> Any:
    """Return what `text` says as plain data; raises `yaml.YAMLError`."""
    try:
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
