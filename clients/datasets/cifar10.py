"""CIFAR-10, read from its published binary batches."""

import gzip
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from metaleak.clients.datasets.dataset import LabeledExamples
from metaleak.clients.datasets.published import Published

Batch = Literal["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32
_ROW = 1 + 3 * _SIDE * _SIDE
_ROWS = 10_000
_FOLDERS = ("cifar10", "cifar-10-batches-bin", ".")


class CIFAR10(Published):
    """CIFAR-10 (Krizhevsky 2009): 32x32 color images, 10 000 in each of its `batches`, by default the test batch.

    `data_dir` holds the files of the binary version, `test_batch.bin` and `data_batch_1.bin` to `data_batch_5.bin`,
    packed (`.bin.gz`) or not, directly or in `cifar10/` or `cifar-10-batches-bin/`. Nothing is fetched, whatever
    `download` says.
    """

    batches: Annotated[tuple[Batch, ...], Field(min_length=1)] = ("test_batch",)

    def load(self) -> LabeledExamples:
        """Return `images (n, 3, 32, 32)`, batch by batch; raises `ValueError` for a missing or damaged file."""
        rows = np.concatenate([_rows(self._file(batch)) for batch in self.batches])
        return LabeledExamples(
            examples=torch.from_numpy(rows[:, 1:].reshape(-1, 3, _SIDE, _SIDE).copy()),
            labels=torch.from_numpy(rows[:, 0].astype(np.int64)),
            classes=_CLASSES,
        )

    def _file(self, batch: str) -> Path:
        for name in (f"{batch}.bin", f"{batch}.bin.gz"):
            folder = self.find(_FOLDERS, (name,))
            if folder is not None:
                return folder / name
        raise ValueError(
            str(self.missing("CIFAR-10", _FOLDERS, (f"{batch}.bin.gz",))).replace(
                "download: true fetches it", "it is not fetched"
            )
        )


def _rows(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a batch's rows `(10000, 3073)`, each with its label first; no more of the file is read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_ROWS * _ROW + 1)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if len(content) != _ROWS * _ROW:
        raise ValueError(f"{path} is damaged: it does not hold {_ROWS} rows of {_ROW} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(_ROWS, _ROW)
    if rows[:, 0].max() >= len(_CLASSES):
        raise ValueError(f"{path} is damaged: it has the label {rows[:, 0].max()}")
    return rows
