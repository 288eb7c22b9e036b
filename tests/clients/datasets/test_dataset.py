"""What all data sets have in common."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from metaleak.clients.datasets import (
    MNIST,
    DataSet,
    Digits,
    EmbeddedMNIST,
    FashionMNIST,
    ImageFolder,
    LabeledExamples,
    Omniglot,
)


def test_labeled_images_must_fit_together() -> None:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1])
    data = LabeledExamples(images, labels, ("a", "b"), frozenset({1}))
    assert data.input_shape == (1, 2, 2)
    for wrong, message in [
        ((images.float(), labels, ("a", "b")), "images must be uint8"),
        ((images[:, 0], labels, ("a", "b")), "images must be uint8"),
        ((images, labels.int(), ("a", "b")), "labels must be int64"),
        ((images[:0], labels[:0], ("a", "b")), "needs images"),
        ((images[:2], labels, ("a", "b")), "2 images do not go with 3 labels"),
        ((images, labels, ("a",)), r"labels lie in \[0, 1\]"),
        ((images, labels - 1, ("a", "b")), r"labels lie in \[-1, 0\]"),
        ((images, labels, ("a", "b"), frozenset({2})), "held-out class 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            LabeledExamples(*wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [EmbeddedMNIST(), Digits(), MNIST(), FashionMNIST(), Omniglot(), ImageFolder(path=Path("x"))],
    ids=lambda data: type(data).__name__,
)
def test_a_data_set_is_its_configuration(data: DataSet) -> None:
    assert isinstance(data, DataSet)
    again = type(data)(**data.model_dump())  # type: ignore[attr-defined]
    assert (again, hash(again)) == (data, hash(data))
    with pytest.raises(ValidationError):
        type(data)(surprise=1)  # type: ignore[call-arg]
