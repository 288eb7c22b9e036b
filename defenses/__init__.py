"""Defences: what a learner does to what it computes before anything leaves it."""

from metaleak.defenses.defence import Defence, Place
from metaleak.defenses.noise import Noise

__all__ = ["Defence", "Noise", "Place"]
