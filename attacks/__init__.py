"""Offline attacks on a record, and the statistics of what they find."""

from metaleak.attacks.reconstruction import QueryAttack, SupportAttack

__all__ = ["QueryAttack", "SupportAttack"]
