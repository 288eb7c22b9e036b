"""Few-shot models: pure functions of named parameters."""

from metaleak.clients.models.conv4 import Conv4
from metaleak.clients.models.lenet import LeNet
from metaleak.clients.models.mlp import MLP
from metaleak.clients.models.model import HEAD, Activation, Decoupled, LinearInput, Model, input_weight_of
from metaleak.clients.models.torch_module import TorchModule

__all__ = [
    "HEAD",
    "MLP",
    "Activation",
    "Conv4",
    "Decoupled",
    "LeNet",
    "LinearInput",
    "Model",
    "TorchModule",
    "input_weight_of",
]
