"""Defenses: what a learner does to what it computes before anything leaves it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.defenses.accounting import (
        gaussian_epsilon,
        gaussian_noise_multiplier,
        redrawn_epsilon,
        secure_sum_epsilon,
    )
    from metaleak.defenses.adaptive_clip import CLIP_NAME, AdaptiveClip, AdaptsClip, adapting
    from metaleak.defenses.cost import bytes_sent
    from metaleak.defenses.defense import (
        NO_NOISE,
        Accounted,
        AddedNoise,
        Costed,
        CountsNorms,
        Defense,
        ExampleMechanism,
        ExampleSet,
        Modeled,
        Place,
        Reading,
        Shapes,
        SharesNoise,
        has_isotropic_noise,
        noise_of,
    )
    from metaleak.defenses.distributed_gaussian import DistributedGaussian
    from metaleak.defenses.distributed_record_level import DistributedRecordLevel
    from metaleak.defenses.gaussian_mechanism import GaussianMechanism
    from metaleak.defenses.noise import Noise
    from metaleak.defenses.pruning import Pruning
    from metaleak.defenses.quantization import Quantization, Sign
    from metaleak.defenses.randomness import RandomSource
    from metaleak.defenses.record_level import RecordLevel
    from metaleak.defenses.secure_aggregation import SecureAggregation
    from metaleak.defenses.selection import Selection

__all__ = [
    "CLIP_NAME",
    "NO_NOISE",
    "Accounted",
    "AdaptiveClip",
    "AdaptsClip",
    "AddedNoise",
    "Costed",
    "CountsNorms",
    "Defense",
    "DistributedGaussian",
    "DistributedRecordLevel",
    "ExampleMechanism",
    "ExampleSet",
    "GaussianMechanism",
    "Modeled",
    "Noise",
    "Place",
    "Pruning",
    "Quantization",
    "RandomSource",
    "Reading",
    "RecordLevel",
    "SecureAggregation",
    "Selection",
    "Shapes",
    "SharesNoise",
    "Sign",
    "adapting",
    "bytes_sent",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "has_isotropic_noise",
    "noise_of",
    "redrawn_epsilon",
    "secure_sum_epsilon",
]

_MODULES = {
    "CLIP_NAME": "adaptive_clip",
    "NO_NOISE": "defense",
    "Accounted": "defense",
    "AdaptiveClip": "adaptive_clip",
    "AdaptsClip": "adaptive_clip",
    "AddedNoise": "defense",
    "Costed": "defense",
    "CountsNorms": "defense",
    "Defense": "defense",
    "DistributedGaussian": "distributed_gaussian",
    "DistributedRecordLevel": "distributed_record_level",
    "ExampleMechanism": "defense",
    "ExampleSet": "defense",
    "GaussianMechanism": "gaussian_mechanism",
    "Modeled": "defense",
    "Noise": "noise",
    "Place": "defense",
    "Pruning": "pruning",
    "Quantization": "quantization",
    "RandomSource": "randomness",
    "Reading": "defense",
    "RecordLevel": "record_level",
    "SecureAggregation": "secure_aggregation",
    "Selection": "selection",
    "Shapes": "defense",
    "SharesNoise": "defense",
    "Sign": "quantization",
    "adapting": "adaptive_clip",
    "bytes_sent": "cost",
    "gaussian_epsilon": "accounting",
    "gaussian_noise_multiplier": "accounting",
    "has_isotropic_noise": "defense",
    "noise_of": "defense",
    "redrawn_epsilon": "accounting",
    "secure_sum_epsilon": "accounting",
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
