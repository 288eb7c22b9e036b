"""PyTorch modules as an app of Flower's own kind writes them, with parameter names of their own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """784 -> `hidden` -> 10, for images (n, 1, 28, 28)."""

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(images.flatten(1))))


class CNN(nn.Module):
    """The network of Flower's PyTorch quickstart (two convolutions, three dense layers), for (n, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(F.relu(self.conv1(images)))
        maps = self.pool(F.relu(self.conv2(maps)))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(maps.flatten(1))))))


NETWORKS = {"mlp": MLP, "cnn": CNN}


def initialized(model: str, seed: int) -> nn.Module:
    """Return the network called `model` with the parameters that `seed` draws."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[model]()
