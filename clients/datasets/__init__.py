"""Data sets: where the learners' images come from."""

from metaleak.clients.datasets.dataset import DataSet, LabeledImages
from metaleak.clients.datasets.embedded import Digits, EmbeddedMNIST
from metaleak.clients.datasets.image_folder import ImageFolder
from metaleak.clients.datasets.mnist import MNIST, FashionMNIST
from metaleak.clients.datasets.omniglot import Omniglot

__all__ = [
    "MNIST",
    "DataSet",
    "Digits",
    "EmbeddedMNIST",
    "FashionMNIST",
    "ImageFolder",
    "LabeledImages",
    "Omniglot",
]
