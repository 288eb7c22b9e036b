"""The public API changes on purpose alone: `python tests/test_public_api.py` writes it down anew.

What is public: the names of `metaleak.deploy` and `metaleak.server`, and the protocols that plug-ins follow. All else
may change from version to version.
"""

import inspect
from importlib import import_module
from pathlib import Path

FILE = Path(__file__).parents[1] / "docs" / "public-api.txt"

FACES = ("metaleak.deploy", "metaleak.server")
PROTOCOLS = {
    "metaleak.defenses": (
        "Defense",
        "ExampleMechanism",
        "Costed",
        "Accounted",
        "Modeled",
        "AdaptsClip",
        "RandomSource",
    ),
    "metaleak.attacks.attack": ("Attack", "AsksMembership", "Reconstructs", "Divisible", "Answers", "Targets"),
    "metaleak.attacks.rounds": ("AsksOverRounds", "ReconstructsOverRounds"),
    "metaleak.attacks.pretraining.evidence": ("PretrainingAttack",),
    "metaleak.clients.rules": ("Rule",),
    "metaleak.clients.models": ("Model", "TextModel"),
    "metaleak.clients.datasets": ("LabeledExamples",),
}


def public_api() -> list[str]:
    """Return a line a name: what it is called with, and for a protocol its members."""
    named = {face: import_module(face).__all__ for face in FACES} | PROTOCOLS
    lines = []
    for module, names in named.items():
        for name in sorted(names):
            found = getattr(import_module(module), name)
            lines.append(f"{module}.{name}{called_with(found)}")
            if module in PROTOCOLS:
                members = sorted({*vars(found), *getattr(found, "__annotations__", {})})
                lines += [f"    {member}{called_with(getattr(found, member, None))}" for member in members
                          if not member.startswith("_") or member == "__call__"]  # fmt: skip
    return lines


def called_with(found: object) -> str:
    """Return the names of the parameters of a function or a method, and of a class those of its own `__init__`."""
    function = vars(found).get("__init__") if inspect.isclass(found) else found
    # The `__init__` of a protocol is Python's own.
    if not inspect.isfunction(function) or getattr(found, "_is_protocol", False):
        return ""
    names = [
        f"{parameter.name}{'' if parameter.default is parameter.empty else '='}"
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    return f"({', '.join(names)})"


def test_the_public_api_is_what_was_written_down() -> None:
    assert public_api() == FILE.read_text().splitlines(), "meant? python tests/test_public_api.py, and CHANGELOG.md"


if __name__ == "__main__":
    FILE.write_text("\n".join(public_api()) + "\n")
