"""Models: pure functions of named parameters."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.clients.models.conv4 import Conv4
    from metaleak.clients.models.dense_layers import OnlyDense, Passed, dense_layers_of, passed
    from metaleak.clients.models.language_model import LanguageModel
    from metaleak.clients.models.layers import INPUT, Layer, Layers, Sliding, layers_of
    from metaleak.clients.models.lenet import LeNet
    from metaleak.clients.models.mlp import MLP
    from metaleak.clients.models.model import (
        Activation,
        Affine,
        Decoupled,
        DenseInput,
        ElementwiseFirst,
        FindsDenseInput,
        LinearInput,
        Model,
        NamesHead,
        bias_of,
        blank_inputs,
        dense_input_of,
        head_of,
        input_weight_of,
    )
    from metaleak.clients.models.torch_module import TorchModule
    from metaleak.clients.models.transformer import TinyBERT, Transformer
    from metaleak.clients.models.transformer_parts import Attention, Embedding, TextModel

__all__ = [
    "INPUT",
    "MLP",
    "Activation",
    "Affine",
    "Attention",
    "Conv4",
    "Decoupled",
    "DenseInput",
    "ElementwiseFirst",
    "Embedding",
    "FindsDenseInput",
    "LanguageModel",
    "Layer",
    "Layers",
    "LeNet",
    "LinearInput",
    "Model",
    "NamesHead",
    "OnlyDense",
    "Passed",
    "Sliding",
    "TextModel",
    "TinyBERT",
    "TorchModule",
    "Transformer",
    "bias_of",
    "blank_inputs",
    "dense_input_of",
    "dense_layers_of",
    "head_of",
    "input_weight_of",
    "layers_of",
    "passed",
]

_MODULES = {
    "INPUT": "layers",
    "MLP": "mlp",
    "Activation": "model",
    "Affine": "model",
    "Attention": "transformer_parts",
    "Conv4": "conv4",
    "Decoupled": "model",
    "DenseInput": "model",
    "ElementwiseFirst": "model",
    "Embedding": "transformer_parts",
    "FindsDenseInput": "model",
    "LanguageModel": "language_model",
    "Layer": "layers",
    "Layers": "layers",
    "LeNet": "lenet",
    "LinearInput": "model",
    "Model": "model",
    "NamesHead": "model",
    "OnlyDense": "dense_layers",
    "Passed": "dense_layers",
    "TextModel": "transformer_parts",
    "TinyBERT": "transformer",
    "Sliding": "layers",
    "TorchModule": "torch_module",
    "Transformer": "transformer",
    "bias_of": "model",
    "blank_inputs": "model",
    "dense_input_of": "model",
    "dense_layers_of": "dense_layers",
    "head_of": "model",
    "input_weight_of": "model",
    "layers_of": "layers",
    "passed": "dense_layers",
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
