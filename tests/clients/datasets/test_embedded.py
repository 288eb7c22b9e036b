"""The embedded data sets are what they say."""

from pathlib import Path

import pytest
import torch

from metaleak.clients.datasets import (
    MNIST,
    Digits,
    EmbeddedMNIST,
    LabeledExamples,
)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> LabeledExamples:
    """The embedded set, parsed once; loading it again from its cache gives the same."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("embedded")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        data, again = EmbeddedMNIST().load(), EmbeddedMNIST().load()
    assert torch.equal(data.examples, again.examples)
    assert torch.equal(data.labels, again.labels)
    assert len(list((cache / "metaleak").iterdir())) == 1
    return data


def test_embedded_mnist_has_all_digits(embedded: LabeledExamples) -> None:
    assert embedded.examples.shape == (5000, 1, 28, 28)
    assert torch.bincount(embedded.labels).tolist() == [500] * 10
    assert (int(embedded.examples.min()), int(embedded.examples.max())) == (0, 255)
    assert embedded.held_out_classes == frozenset()


def test_digits_use_all_gray_levels() -> None:
    data = Digits().load()
    assert data.examples.shape == (1797, 1, 8, 8)
    assert len(set(data.examples.flatten().tolist())) == 17
    assert (int(data.examples.min()), int(data.examples.max())) == (0, 255)
    assert data.labels[:10].tolist() == list(range(10))


def test_embedded_mnist_is_part_of_mnist(shared_data: Path, embedded: LabeledExamples) -> None:
    whole = MNIST(data_dir=shared_data).load()
    known = {
        (image.tobytes(), label) for image, label in zip(whole.examples.numpy(), whole.labels.tolist(), strict=True)
    }
    ours = zip(embedded.examples.numpy(), embedded.labels.tolist(), strict=True)
    assert all((image.tobytes(), label) in known for image, label in ours)
