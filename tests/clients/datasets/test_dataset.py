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


def test_labeled_examples_must_fit_together() -> None:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1])
    data = LabeledExamples(images, labels, ("a", "b"), frozenset({1}))
    assert data.input_shape == (1, 2, 2)
    for wrong, message in [
        ((images.float(), labels, ("a", "b")), "image must be uint8"),
        ((images[:, 0], labels, ("a", "b")), "image must be uint8"),
        ((images, labels.int(), ("a", "b")), "labels must be int64"),
        ((images[:0], labels[:0], ("a", "b")), "needs examples"),
        ((images[:2], labels, ("a", "b")), "there are 2 examples, but 3 labels"),
        ((images, labels, ("a",)), r"labels lie in \[0, 1\]"),
        ((images, labels - 1, ("a", "b")), r"labels lie in \[-1, 0\]"),
        ((images, labels, ("a", "b"), frozenset({2})), "held-out class 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            LabeledExamples(*wrong)  # type: ignore[arg-type]


def test_images_are_computed_with_in_the_unit_interval_and_tokens_as_they_are() -> None:
    labels = torch.tensor([0, 1, 1])
    images = LabeledExamples(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), labels, ("a", "b"))
    assert torch.equal(images.inputs(torch.tensor([2])), torch.full((1, 1, 2, 2), 0.2))
    tokens = torch.arange(12).reshape(3, 4)
    sentences = LabeledExamples(tokens, labels, ("a", "b"), modality="tokens")
    assert sentences.input_shape == (4,)
    assert torch.equal(sentences.inputs(torch.tensor([1, 0])), tokens[[1, 0]])
    for examples, modality, message in [
        (tokens.int(), "tokens", r"tokens must be int64 \(n, T\), not torch.int32"),
        (tokens - 1, "tokens", "numbered from 0 on, not -1"),
        (tokens, "sound", "modality: 'sound' is not allowed; image or tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            LabeledExamples(examples, labels, ("a", "b"), modality=modality)  # type: ignore[arg-type]


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
