"""Offline attacks on a record, and the statistics of what they find."""

from metaleak.attacks.reconstruction import ReconstructionAttack, query_attack, support_attack

__all__ = ["ReconstructionAttack", "query_attack", "support_attack"]
