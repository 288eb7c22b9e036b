"""Few-shot models: pure functions of named parameters."""

from metaleak.clients.models.conv4 import Conv4
from metaleak.clients.models.layers import INPUT, Layer, Layers, layers_of
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
    dense_input_of,
    head_of,
    input_weight_of,
)
from metaleak.clients.models.torch_module import TorchModule

__all__ = [
    "INPUT",
    "MLP",
    "Activation",
    "Affine",
    "Conv4",
    "Decoupled",
    "DenseInput",
    "ElementwiseFirst",
    "FindsDenseInput",
    "Layer",
    "Layers",
    "LeNet",
    "LinearInput",
    "Model",
    "NamesHead",
    "TorchModule",
    "bias_of",
    "dense_input_of",
    "head_of",
    "input_weight_of",
    "layers_of",
]
