"""Defenses: what a learner does to what it computes before anything leaves it."""

from metaleak.defenses.accounting import gaussian_epsilon, gaussian_noise_multiplier, secure_sum_epsilon
from metaleak.defenses.cost import bytes_sent
from metaleak.defenses.defense import (
    NO_NOISE,
    Accounted,
    AddedNoise,
    Costed,
    Defense,
    Modeled,
    Place,
    Shapes,
    noise_of,
)
from metaleak.defenses.gaussian_mechanism import GaussianMechanism
from metaleak.defenses.noise import Noise
from metaleak.defenses.pruning import Pruning
from metaleak.defenses.quantization import Quantization, Sign
from metaleak.defenses.randomness import RandomSource
from metaleak.defenses.secure_aggregation import SecureAggregation
from metaleak.defenses.selection import Selection

__all__ = [
    "NO_NOISE",
    "Accounted",
    "AddedNoise",
    "Costed",
    "Defense",
    "GaussianMechanism",
    "Modeled",
    "Noise",
    "Place",
    "Pruning",
    "Quantization",
    "RandomSource",
    "SecureAggregation",
    "Selection",
    "Shapes",
    "Sign",
    "bytes_sent",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "noise_of",
    "secure_sum_epsilon",
]
