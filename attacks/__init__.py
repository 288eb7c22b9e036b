"""Offline attacks on a record, and the statistics of what they find."""

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
