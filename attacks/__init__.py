"""Offline attacks on a record, and the measures of their success."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.attacks.inversion.classical import cosine_tv_attack, dlg_attack, inverting_gradients_attack
    from metaleak.attacks.inversion.from_noise import InversionFromNoise
    from metaleak.attacks.inversion.from_target import InversionFromTarget, query_attack, support_attack

__all__ = [
    "InversionFromNoise",
    "InversionFromTarget",
    "cosine_tv_attack",
    "dlg_attack",
    "inverting_gradients_attack",
    "query_attack",
    "support_attack",
]

_MODULES = {
    "InversionFromNoise": "inversion.from_noise",
    "InversionFromTarget": "inversion.from_target",
    "cosine_tv_attack": "inversion.classical",
    "dlg_attack": "inversion.classical",
    "inverting_gradients_attack": "inversion.classical",
    "query_attack": "inversion.from_target",
    "support_attack": "inversion.from_target",
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
