"""Few-shot models: pure functions of named parameters."""

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
