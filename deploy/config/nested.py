"""Values in nested plain data, by dotted path."""

from typing import Any

from metaleak.deploy.errors import WrongUsage


def value_at(node: Any, keys: list[str]) -> Any:
    """Return what lies at `keys`, `None` where there is nothing."""
    for key in keys:
        if isinstance(node, list):
            node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


def with_value(plain: dict[str, Any], path: str, value: object, source: str = "grid") -> dict[str, Any]:
    """Return `plain` with `value` at the dotted `path`, lists indexed by number.

    Raises `WrongUsage`, naming `source`, when the path leads through something that has no such entry.
    """
    return _with(plain, path.split("."), value, source)  # type: ignore[no-any-return]


def _with(node: Any, keys: list[str], value: Any, source: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise WrongUsage(f"{source}: the list has entries 0 to {len(node) - 1}, not {key!r}")
        return [_with(item, rest, value, source) if i == int(key) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise WrongUsage(f"{source}: {key!r} lies inside a plain value")
    return {**node, key: _with(node.get(key), rest, value, source)}
