"""The defenses of an experiment and their strength in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

UNDEFENDED = "undefended"

RULE_STRUCTURE = ("name", "order", "adapts")
"""The settings of a rule that act as a defense, because they decide what is computed and sent."""

_KNOWN = {
    "gaussian": ("", "Gaussian mechanism"),
    "record-level": ("", "record-level privacy"),
    "distributed-record-level": ("", "distributed record-level privacy"),
    "distributed-gaussian": ("", "distributed Gaussian noise"),
    "pruning": ("keep", "pruning (part kept)"),
    "quantization": ("bits", "quantization (bits)"),
    "sign": ("", "sign and mean magnitude alone"),
    "selection": ("", "selected layers alone"),
    "private-finetuning": ("", "private finetuning"),
    "cut-answers": ("shown", "cut answers (shown)"),
    "secure-aggregation": ("", "secure aggregation (ideal functionality)"),
}
"""The setting that stands for a defense's scale, if any, and what to call it."""

_CALLED = re.compile(r" \((epsilon|noise multiplier|part kept|bits|shown)\)")
"""What the scale of a defense is called, where that stands in its name."""


def describe_defenses(defenses: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return a name and a scale for the defenses of an experiment, ("undefended", "") without any.

    The scale is the number that a grid would vary: noise's `scale`; where it is another setting, the name says which.
    """
    described = [_described(defense) for defense in defenses]
    names, scales = (" + ".join(one[place] for one in described if one[place]) for place in (0, 1))
    return names or UNDEFENDED, scales


def describe_strength(defenses: Sequence[Mapping[str, Any]]) -> str:
    """Return the defenses of an experiment, each with its scale, in one phrase: "Gaussian mechanism, epsilon 8"."""
    return " + ".join(_with_scale(*_described(defense)) for defense in defenses) or UNDEFENDED


def _described(defense: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of one defense, and its scale, "" where it has none."""
    others = {key: value for key, value in defense.items() if value is not None}
    place, name, law = (str(others.pop(key, "")) for key in ("place", "name", "law"))
    scale_key, title = _KNOWN.get(name, ("scale", f"{place} {name or 'defense'}".strip()))
    numbers = [key for key, value in others.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    if name not in _KNOWN and scale_key not in others and len(numbers) == 1:
        # A third party's defense is shown with its only number, which a grid would vary.
        scale_key = numbers[0]
        title += f" ({scale_key.replace('_', ' ')})"
    if name in ("gaussian", "record-level", "distributed-gaussian", "distributed-record-level", "private-finetuning"):
        scale_key = "epsilon" if "epsilon" in others else "noise_multiplier"
        title += f" ({scale_key.replace('_', ' ')})"
    scale = _plain(others.pop(scale_key)) if scale_key in others else ""
    details = [law, *(f"{key} {_plain(value)}" for key, value in others.items())]
    return ", ".join([title, *(detail for detail in details if detail)]), scale


def _with_scale(name: str, scale: str) -> str:
    """Return a name and its scale in one phrase; what the name says in brackets is what the scale is."""
    if not scale:
        return name
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
