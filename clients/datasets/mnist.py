"""MNIST and Fashion-MNIST in full, read by torchvision."""

import gzip
import math
import zlib
from pathlib import Path
from typing import ClassVar

import torch

from metaleak.clients.datasets.cache import cache_directory, digest, kept_directory
from metaleak.clients.datasets.dataset import LabeledExamples
from metaleak.clients.datasets.published import Published

_IMAGES = "train-images-idx3-ubyte"
_LABELS = "train-labels-idx1-ubyte"
_FILES = (_IMAGES, _LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_ARCHIVES = tuple(f"{file}.gz" for file in _FILES)
_CHUNK = 1 << 20
# Both data sets have files of the same names; this checksum of the training images tells them apart.
_KNOWN_CONTENT = {3925137587: "MNIST", 3035799336: "FashionMNIST"}


class MNIST(Published):
    """The 60 000 training images of MNIST (LeCun et al. 1998), 28x28 gray.

    `data_dir` holds torchvision's own layout (`MNIST/raw/`), or the four published `.gz` archives, directly or in
    `mnist/`. Archives are unpacked into the cache directory.
    """

    _name: ClassVar[str] = "MNIST"
    _folder: ClassVar[str] = "mnist"

    def load(self) -> LabeledExamples:
        """Return `images (60000, 1, 28, 28)`.

        Raises `ValueError` when a file is missing, damaged or of another data set, `OSError` when the cache
        cannot be written.
        """
        root = self._root()
        raw = root / self._name / "raw"
        for file in _FILES:
            _check_idx(raw / file)
        found = _KNOWN_CONTENT.get(zlib.crc32((raw / _IMAGES).read_bytes()), self._name)
        if found != self._name:
            raise ValueError(f"{self.folder() or root} holds {found}, not {self._name}")

        # torchvision takes seconds to import, and most data sets do without.
        import torchvision.datasets

        data = getattr(torchvision.datasets, self._name)(root, train=True)
        return LabeledExamples(
            examples=data.data.unsqueeze(1),
            labels=data.targets.to(torch.int64),
            classes=tuple(str(name) for name in data.classes),
        )

    def _root(self) -> Path:
        """Return the folder that torchvision calls root: the user's folder, or one in the cache."""
        layout = f"{self._name}/raw"
        if self.find((layout,), _FILES):
            return self.folder() or Path()
        subfolders = (self._folder, ".", layout)
        archives = self.find(subfolders, _ARCHIVES)
        if archives is not None:
            key = digest(*(archives / archive for archive in _ARCHIVES))
            return kept_directory(f"{self._folder}-{key}", lambda root: self._unpack(archives, root))
        downloaded = f"{self._folder}-downloaded"
        if self.download:
            return kept_directory(downloaded, self._fetch)
        if (cache_directory() / downloaded).is_dir():
            return cache_directory() / downloaded
        raise self.missing(self._name, subfolders, _ARCHIVES)

    def _unpack(self, archives: Path, root: Path) -> None:
        raw = root / self._name / "raw"
        raw.mkdir(parents=True)
        for archive, file in zip(_ARCHIVES, _FILES, strict=True):
            _unpack_idx(archives / archive, raw / file)

    def _fetch(self, root: Path) -> None:
        import torchvision.datasets

        try:
            getattr(torchvision.datasets, self._name)(root, download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{self._name} cannot be downloaded: {' '.join(str(error).split())}") from error


class FashionMNIST(MNIST):
    """The 60 000 training images of Fashion-MNIST (Xiao et al. 2017), 28x28 gray.

    `data_dir` is as for `MNIST`: it holds `FashionMNIST/raw/`, or the archives, directly or in `fashion_mnist/`.
    """

    _name: ClassVar[str] = "FashionMNIST"
    _folder: ClassVar[str] = "fashion_mnist"


def _promised_size(head: bytes, source: Path) -> int:
    """Return the size of an idx file that begins with `head`: magic, dimensions, then one byte per item."""
    if len(head) >= 4 and head[:3] == b"\0\0\x08" and 1 <= head[3] <= 3:
        length = 4 + 4 * head[3]
        if len(head) >= length:
            dimensions = [int.from_bytes(head[at : at + 4], "big") for at in range(4, length, 4)]
            return length + math.prod(dimensions)
    raise ValueError(f"{source} is damaged: it does not begin as an idx file of bytes does")


def _check_idx(path: Path) -> None:
    """Raise `ValueError` when the idx file `path` is not as long as its header says."""
    with path.open("rb") as file:
        promised = _promised_size(file.read(16), path)
    size = path.stat().st_size
    if size != promised:
        raise ValueError(f"{path} is damaged: it has {size} bytes, its head promises {promised}")


def _unpack_idx(archive: Path, target: Path) -> None:
    """Write the idx file that is packed in `archive`, but no more bytes than its header says."""
    try:
        with gzip.open(archive) as packed, target.open("wb") as file:
            piece = packed.read(16)
            promised = _promised_size(piece, archive)
            written = 0
            while piece:
                written += file.write(piece)
                if written > promised:
                    raise ValueError(f"{archive} is damaged: it holds more than it promises")
                piece = packed.read(_CHUNK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{archive} is damaged: {error}") from error
    _check_idx(target)
