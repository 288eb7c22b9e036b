"""Defences in words: what an experiment does against the curious server, and how strongly."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

UNDEFENDED = "undefended"

RULE_STRUCTURE = ("name", "order", "adapts")
"""The settings of a rule that protect, or do not, by what the rule computes."""

_KNOWN = {
    "gaussian": ("", "Gaussian mechanism"),
    "pruning": ("keep", "pruning (part kept)"),
    "quantisation": ("bits", "quantisation (bits)"),
    "sign": ("", "sign and mean magnitude alone"),
    "selection": ("", "selected layers alone"),
    "secure-aggregation": ("", "secure aggregation (ideal functionality)"),
}
"""The setting that stands for a defence's scale, if any, and what to call it."""

_CALLED = re.compile(r" \((epsilon|noise multiplier|part kept|bits)\)")
"""What the scale of a defence is called, where that stands in its name."""


def describe_defences(defences: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return a name and a scale for the defences of an experiment, ("undefended", "") without any.

    The scale is the number that a grid would vary: noise's `scale`; where it is another setting, the name says which.
    """
    if not defences:
        return UNDEFENDED, ""
    names, scales = [], []
    for defence in defences:
        others = {key: value for key, value in defence.items() if value is not None}
        place, name, law = (str(others.pop(key, "")) for key in ("place", "name", "law"))
        scale_key, title = _KNOWN.get(name, ("scale", f"{place} {name or 'defence'}".strip()))
        numbers = [
            key for key, value in others.items() if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if name not in _KNOWN and scale_key not in others and len(numbers) == 1:
            # Of a defence that is not ours, its one number is what a grid would vary.
            scale_key = numbers[0]
            title += f" ({scale_key.replace('_', ' ')})"
        if name == "gaussian":
            scale_key = "epsilon" if "epsilon" in others else "noise_multiplier"
            title += f" ({scale_key.replace('_', ' ')})"
        if scale_key in others:
            scales.append(_plain(others.pop(scale_key)))
        details = [law, *(f"{key} {_plain(value)}" for key, value in others.items())]
        names.append(", ".join([title, *(detail for detail in details if detail)]))
    return " + ".join(names), " + ".join(scales)


def describe_strength(name: str, scale: str) -> str:
    """Return a name and a scale of `describe_defences` in one phrase: "Gaussian mechanism, epsilon 8".

    What the name says in brackets is what the scale is; where there are several defences, each has its own.
    """
    names, scales = name.split(" + "), scale.split(" + ") if scale else []
    if len(names) == len(scales):
        return " + ".join(_with_scale(*one) for one in zip(names, scales, strict=True))
    return _with_scale(name, scale) if scale else name


def _with_scale(name: str, scale: str) -> str:
    called = _CALLED.search(name)
    return f"{name}, scale {scale}" if called is None else _CALLED.sub(f", {called[1]} {scale}", name, count=1)


def describe_structure(rule: object) -> str:
    """Return how a rule protects by what it computes, "" for second-order MAML, which does not, and for no rule."""
    if not isinstance(rule, Mapping):
        return ""
    name, first_order, head = str(rule.get("name", "")), rule.get("order") == 1, rule.get("adapts") == "head"
    if "order" not in rule:
        return "" if name in ("", "maml") else f"rule {name}"
    parts = ["first-order MAML"] if first_order else []
    parts += ["head-only adaptation (ANIL)"] if head else []
    return " + ".join(parts)


def _plain(value: object) -> str:
    """Return a setting as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}"
    return " ".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)
