"""Offline attacks on a record, and the statistics of what they find."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.attacks.inversion.classical import cosine_tv_attack, dlg_attack, inverting_gradients_attack
    from metaleak.attacks.inversion.reconstruction import ReconstructionAttack, query_attack, support_attack

__all__ = [
    "ReconstructionAttack",
    "cosine_tv_attack",
    "dlg_attack",
    "inverting_gradients_attack",
    "query_attack",
    "support_attack",
]

_MODULES = {
    "ReconstructionAttack": "inversion.reconstruction",
    "cosine_tv_attack": "inversion.classical",
    "dlg_attack": "inversion.classical",
    "inverting_gradients_attack": "inversion.classical",
    "query_attack": "inversion.reconstruction",
    "support_attack": "inversion.reconstruction",
}

if not TYPE_CHECKING:  # Type checkers would take any name for one of these.

    def __getattr__(name: str) -> object:
        """Import the module of a name when the name is first used."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
