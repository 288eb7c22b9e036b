"""Few-shot models: pure functions of named parameters."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.clients.models.conv4 import Conv4
    from metaleak.clients.models.lenet import LeNet
    from metaleak.clients.models.mlp import MLP
    from metaleak.clients.models.model import (
        HEAD,
        Activation,
        Decoupled,
        ElementwiseFirst,
        LinearInput,
        Model,
        bias_of,
        input_weight_of,
    )
    from metaleak.clients.models.torch_module import TorchModule

__all__ = [
    "HEAD",
    "MLP",
    "Activation",
    "Conv4",
    "Decoupled",
    "ElementwiseFirst",
    "LeNet",
    "LinearInput",
    "Model",
    "TorchModule",
    "bias_of",
    "input_weight_of",
]

_MODULES = {
    "HEAD": "model",
    "MLP": "mlp",
    "Activation": "model",
    "Conv4": "conv4",
    "Decoupled": "model",
    "ElementwiseFirst": "model",
    "LeNet": "lenet",
    "LinearInput": "model",
    "Model": "model",
    "TorchModule": "torch_module",
    "bias_of": "model",
    "input_weight_of": "model",
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
