"""MNIST and Fashion-MNIST load from every layout that they promise to accept, and damage is named."""

import gzip
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from metaleak.clients.datasets import (
    MNIST,
    DataSet,
    FashionMNIST,
    Omniglot,
)

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    """The published format: a magic number with the number of dimensions, the dimensions, the bytes."""
    return b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def small_mnist() -> dict[str, bytes]:
    """Files named and written as MNIST's, with 20 training images."""
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    return dict(zip(IDX, (idx(images), idx(labels), idx(images[:2]), idx(labels[:2])), strict=True))


def write_archives(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, content in small_mnist().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    for name, content in changed.items():
        (folder / name).write_bytes(content)
    return folder


def write_layout(folder: Path) -> Path:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in small_mnist().items():
        (raw / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_archives(folder / "mnist").parent,
        write_archives,
        lambda folder: write_archives(folder / "MNIST" / "raw").parents[1],
        write_layout,
    ],
    ids=["archives in mnist", "archives", "torchvision archives", "torchvision"],
)
@pytest.mark.parametrize("by", ["data_dir", "METALEAK_DATA"])
def test_mnist_accepts_every_layout(
    make: Callable[[Path], Path], by: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "data")
    before = sorted(folder.rglob("*"))
    monkeypatch.setenv("METALEAK_DATA", str(folder if by == "METALEAK_DATA" else tmp_path / "elsewhere"))
    data = (MNIST(data_dir=folder) if by == "data_dir" else MNIST()).load()
    assert data.examples.shape == (20, 1, 28, 28)
    assert data.examples.flatten().numpy().tobytes() == small_mnist()[IDX[0]][16:]
    assert data.labels.tolist() == [*range(10), *range(10)]
    assert len(data.classes) == 10
    assert sorted(folder.rglob("*")) == before, "the user's folder is only read"
    assert not list(cache.glob(".unfinished-*"))


def test_unpacked_archives_are_kept_and_changed_ones_are_unpacked_again(tmp_path: Path, cache: Path) -> None:
    folder = write_archives(tmp_path / "mnist")
    MNIST(data_dir=folder).load()
    MNIST(data_dir=tmp_path).load()
    assert len(list(cache.iterdir())) == 1
    (folder / f"{IDX[1]}.gz").write_bytes(gzip.compress(idx(np.ones(20, dtype=np.uint8))))
    assert MNIST(data_dir=folder).load().labels.tolist() == [1] * 20


def test_missing_data_say_where_and_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: Callable[[DataSet], str]
) -> None:
    assert "no data_dir is given and METALEAK_DATA is not set (download: true fetches it)" in complaint(MNIST())
    folder = write_archives(tmp_path / "mnist")
    (folder / f"{IDX[3]}.gz").unlink()
    assert f"{folder} lacks {IDX[3]}.gz (download: true" in complaint(MNIST(data_dir=tmp_path))
    assert f"data_dir is {tmp_path}/none, which is not a folder" in complaint(MNIST(data_dir=tmp_path / "none"))
    monkeypatch.setenv("METALEAK_DATA", str(folder / f"{IDX[0]}.gz"))
    assert "METALEAK_DATA is " in complaint(FashionMNIST())
    monkeypatch.setenv("METALEAK_DATA", str(tmp_path))
    assert "omniglot lacks images_background.zip, images_evaluation.zip" in complaint(Omniglot())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(small_mnist()[IDX[0]])[:-500], "ended before"),
        (b"no gzip at all, but long enough", "gzip"),
        (gzip.compress(small_mnist()[IDX[0]][:-1]), "its head promises"),
        (gzip.compress(small_mnist()[IDX[0]] + b"x"), "more than it promises"),
        (gzip.compress(b"\0\0\x0d\x03" + small_mnist()[IDX[0]][4:]), "does not begin as an idx file"),
        (gzip.compress(b""), "does not begin as an idx file"),
    ],
    ids=["truncated", "no gzip", "too short", "too long", "other type", "empty"],
)
def test_damaged_archives_are_named_and_leave_nothing(
    content: bytes, message: str, tmp_path: Path, cache: Path, complaint: Callable[[DataSet], str]
) -> None:
    write_archives(tmp_path / "mnist", **{f"{IDX[0]}.gz": content})
    said = complaint(MNIST(data_dir=tmp_path))
    assert IDX[0] in said
    assert "damaged" in said
    assert message in said
    assert list(cache.iterdir()) == []


def test_a_bit_that_flipped_is_noticed(tmp_path: Path, complaint: Callable[[DataSet], str]) -> None:
    content = bytearray(gzip.compress(small_mnist()[IDX[0]]))
    content[len(content) // 2] ^= 1
    write_archives(tmp_path / "mnist", **{f"{IDX[0]}.gz": bytes(content)})
    assert f"{IDX[0]}.gz is damaged" in complaint(MNIST(data_dir=tmp_path))


def test_a_truncated_file_in_torchvisions_layout_is_named(
    tmp_path: Path, complaint: Callable[[DataSet], str]
) -> None:
    write_layout(tmp_path)
    path = tmp_path / "MNIST" / "raw" / IDX[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is damaged: it has 15596 bytes, its head promises 15696" in complaint(MNIST(data_dir=tmp_path))


def test_a_download_needs_consent_and_comes_to_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, complaint: Callable[[DataSet], str]
) -> None:
    import torchvision.datasets

    asked = []

    def fetch(self: torchvision.datasets.MNIST) -> None:
        asked.append(Path(self.root))
        if not (Path(self.root) / "MNIST").exists():
            write_layout(Path(self.root))

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fetch)
    folder = tmp_path / "data"
    folder.mkdir()
    complaint(MNIST(data_dir=folder))
    assert asked == []
    assert len(MNIST(data_dir=folder, download=True).load().labels) == 20
    assert len(asked) == 1
    assert len(MNIST(data_dir=folder).load().labels) == 20, "what was fetched once stays"
    assert list(folder.iterdir()) == []
    assert [entry.name for entry in cache.iterdir()] == ["mnist-downloaded"]


def test_a_failed_download_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, complaint: Callable[[DataSet], str]
) -> None:
    import torchvision.datasets

    def fail(self: object) -> None:
        raise RuntimeError("Error downloading:\nTried a mirror, got:\nno network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    assert complaint(MNIST(download=True)).startswith("MNIST cannot be downloaded: Error downloading: Tried")
    assert list(cache.iterdir()) == []


def test_several_may_unpack_at_once(tmp_path: Path, cache: Path) -> None:
    folder = write_archives(tmp_path / "mnist")
    MNIST(data_dir=write_layout(tmp_path / "warm")).load()  # imports torchvision
    together = threading.Barrier(4)

    def load(_: int) -> bytes:
        together.wait()
        return MNIST(data_dir=folder).load().examples.numpy().tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(load, range(4))) == {small_mnist()[IDX[0]][16:]}
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(("kind", "other"), [(MNIST, FashionMNIST), (FashionMNIST, MNIST)])
def test_the_published_sets_load_and_are_not_mistaken(
    kind: type[MNIST], other: type[MNIST], shared_data: Path, complaint: Callable[[DataSet], str]
) -> None:
    data = kind(data_dir=shared_data).load()
    assert data.examples.shape == (60000, 1, 28, 28)
    assert torch.bincount(data.labels).min() > 5000
    folder = shared_data / ("mnist" if kind is MNIST else "fashion_mnist")
    assert torch.equal(kind(data_dir=folder).load().examples, data.examples)
    assert f"holds {kind.__name__}, not {other.__name__}" in complaint(other(data_dir=folder))
