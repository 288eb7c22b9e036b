"""Data sets: the images and sentences that are divided among learners."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.clients.datasets.cifar10 import CIFAR10
    from metaleak.clients.datasets.corpora import SST2, CoLA, RottenTomatoes
    from metaleak.clients.datasets.dataset import DataSet, LabeledExamples
    from metaleak.clients.datasets.embedded import Digits, EmbeddedMNIST
    from metaleak.clients.datasets.image_folder import ImageFolder
    from metaleak.clients.datasets.mnist import MNIST, FashionMNIST
    from metaleak.clients.datasets.omniglot import Omniglot
    from metaleak.clients.datasets.own_text import MadeUpSentences, OwnText

__all__ = [
    "CIFAR10",
    "MNIST",
    "SST2",
    "CoLA",
    "DataSet",
    "Digits",
    "EmbeddedMNIST",
    "FashionMNIST",
    "ImageFolder",
    "LabeledExamples",
    "MadeUpSentences",
    "Omniglot",
    "OwnText",
    "RottenTomatoes",
]

_MODULES = {
    "CIFAR10": "cifar10",
    "MNIST": "mnist",
    "SST2": "corpora",
    "CoLA": "corpora",
    "DataSet": "dataset",
    "Digits": "embedded",
    "EmbeddedMNIST": "embedded",
    "FashionMNIST": "mnist",
    "ImageFolder": "image_folder",
    "LabeledExamples": "dataset",
    "MadeUpSentences": "own_text",
    "Omniglot": "omniglot",
    "OwnText": "own_text",
    "RottenTomatoes": "corpora",
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
