"""Reading an attack's scores and galleries; shapes are checked and limited before anything is loaded."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from metaleak.server.record.plain_file import naming, plain_file
from metaleak.server.record.tensor_file import Header, read_header, read_tensor
from metaleak.server.record.whole_file import write_whole

MEGABYTE = 1 << 20
MAX_SCORES_FILE = 512 * MEGABYTE
MAX_TARGETS = 5_000_000
MAX_GALLERY_FILE = 1024 * MEGABYTE
MAX_RECONSTRUCTIONS_FILE = 4096 * MEGABYTE
MAX_IMAGE_VALUES = 3 * 1024 * 1024
SHOWN = 8
_LONGEST_WORD = 40

Scores = NDArray[np.float64]
Bools = NDArray[np.bool_]
Images = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Some targets of an attack: the file's first members and first non-members, at most 8 of each.

    `prior`, `reconstruction` and `truth` are float32 `(n, C, H, W)` in [0, 1] with C 1 or 3; `truth` is the image
    that the learner really held at that position. `member (n,)` are booleans, `score (n,)` float32.
    """

    prior: Images
    reconstruction: Images
    truth: Images
    member: Bools
    score: Images


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some examples that learners held, each with the reconstruction that it was paired with; at most 16.

    `truth` and `reconstruction` are images `(n, C, H, W)` float32, meant to lie in [0, 1], C 1 or 3, or sequences of
    tokens `(n, T)` int64. `learner (n,)` is the learner's number; `alike (n,)` is their similarity, PSNR in dB or
    the fraction of equal tokens. `words` are the words of tokens, as far as they are known.
    """

    truth: NDArray[Any]
    reconstruction: NDArray[Any]
    learner: NDArray[np.int64]
    alike: NDArray[np.float64]
    words: Mapping[int, str] = field(default_factory=dict)


def write_columns(path: Path, columns: Mapping[str, Tensor]) -> None:
    """Write columns `(T,)` by name to the Parquet file `path`, which is complete or as it was before."""
    table = pa.table({name: pa.array(values.numpy()) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_whole(path, sink.getvalue().to_pybytes())


def read_scores(root: Path, name: str) -> tuple[Scores, Bools]:
    """Return `scores (T,)` and `member (T,)` from the Parquet file `root/name`.

    Both are empty when there is no file, or when membership was not known when it was written. Raises `ValueError`
    for a damaged file, a missing column, another type, or more than 5 million targets.
    """
    try:
        with naming(root, name), _sized(root, name, MAX_SCORES_FILE) as file:
            table = _scores(file)
    except FileNotFoundError:
        table = None
    if table is None:
        return np.empty(0), np.empty(0, np.bool_)
    path = root / name
    if table["score"].null_count or table["member"].null_count:
        raise ValueError(f"{path}: empty cells in 'score' or 'member'")
    scores = table["score"].to_numpy().astype(np.float64)
    if missing := int(np.isnan(scores).sum()):
        raise ValueError(f"{path}: {missing} of {len(scores)} scores are NaN")
    return scores, table["member"].to_numpy().astype(np.bool_)


def _scores(file: int) -> pa.Table | None:
    try:
        with os.fdopen(os.dup(file), "rb") as opened, pq.ParquetFile(opened) as parquet:
            if (rows := parquet.metadata.num_rows) > MAX_TARGETS:
                raise ValueError(f"{rows} targets, more than the {MAX_TARGETS} that are read")
            schema = parquet.schema_arrow
            if "score" in schema.names and "member" not in schema.names:
                return None
            for column, wanted in (("score", pa.types.is_floating), ("member", pa.types.is_boolean)):
                if schema.get_field_index(column) < 0 or not wanted(schema.field(column).type):
                    raise ValueError(f"no column {column!r} of the expected type")
            return parquet.read(columns=["score", "member"])
    # Arrow raises exceptions of its own and of Python for a damaged file.
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a readable Parquet file: {_line(error)}") from error


def read_gallery(root: Path, name: str) -> Gallery | None:
    """Return a few rows of the gallery `root/name`, `None` when there is none; only those rows are loaded.

    Raises `ValueError` for a damaged file, shapes that do not fit, or images of more than 3 million values.
    """
    try:
        with naming(root, name), _sized(root, name, MAX_GALLERY_FILE) as file:
            return _gallery(file, _header(file))
    except FileNotFoundError:
        return None


def _header(file: int) -> Header:
    try:
        return read_header(file)
    except ValueError as error:
        raise ValueError(f"not a readable safetensors file: {error}") from None


def _gallery(file: int, header: Header) -> Gallery:
    images = ("prior", "reconstruction", "truth")
    if missing := sorted({*images, "member", "score"} - set(header.tensors)):
        raise ValueError(f"no {', '.join(missing)}")
    shape = header.tensors["prior"].shape
    if len(shape) != 4 or shape[1] not in (1, 3) or not 0 < math.prod(shape[1:]) <= MAX_IMAGE_VALUES:
        raise ValueError(f"prior {shape} is not (n, 1 or 3, height, width) of a showable size")
    for name in sorted({*images, "member", "score"}):
        expected = shape if name in images else shape[:1]
        if (found := header.tensors[name].shape) != expected:
            raise ValueError(f"{name} {found} does not fit prior {shape}")
    member = read_tensor(file, header, "member") != 0
    rows = np.concatenate([np.flatnonzero(member)[:SHOWN], np.flatnonzero(~member)[:SHOWN]]).tolist()

    def chosen(name: str) -> Images:
        parts = [read_tensor(file, header, name, slice(row, row + 1)) for row in rows]
        empty = np.empty((0, *header.tensors[name].shape[1:]))
        return np.concatenate([empty, *parts]).astype(np.float32)

    return Gallery(
        prior=chosen("prior"),
        reconstruction=chosen("reconstruction"),
        truth=chosen("truth"),
        member=member[rows],
        score=chosen("score"),
    )


def read_pairs(root: Path, name: str) -> Pairs | None:
    """Return some rows of the reconstructions `root/name`, evenly apart, `None` when there are none.

    Only those rows are loaded. Raises `ValueError` for a damaged file, shapes that do not fit, or examples of more
    than 3 million values.
    """
    try:
        with naming(root, name), _sized(root, name, MAX_RECONSTRUCTIONS_FILE) as file:
            return _pairs(file, _header(file))
    except FileNotFoundError:
        return None


def _pairs(file: int, header: Header) -> Pairs:
    if missing := sorted({"truth", "reconstruction", "learner", "alike"} - set(header.tensors)):
        raise ValueError(f"no {', '.join(missing)}")
    shape = header.tensors["truth"].shape
    images = len(shape) == 4 and shape[1] in (1, 3)
    if not (images or len(shape) == 2) or not 0 < math.prod(shape[1:]) <= MAX_IMAGE_VALUES:
        raise ValueError(f"truth {shape} is neither (n, 1 or 3, height, width) nor (n, T) of a showable size")
    for one in ("reconstruction", "learner", "alike"):
        expected = shape if one == "reconstruction" else shape[:1]
        if (found := header.tensors[one].shape) != expected:
            raise ValueError(f"{one} {found} does not fit truth {shape}")
    rows = range(0, shape[0], max(1, math.ceil(shape[0] / (2 * SHOWN))))

    def chosen(one: str, dtype: type[np.generic]) -> NDArray[Any]:
        parts = [read_tensor(file, header, one, slice(row, row + 1)) for row in rows]
        return np.concatenate([np.empty((0, *header.tensors[one].shape[1:])), *parts]).astype(dtype)

    kind = np.float32 if images else np.int64
    return Pairs(
        chosen("truth", kind),
        chosen("reconstruction", kind),
        chosen("learner", np.int64),
        chosen("alike", np.float64),
        _words(header),
    )


def _words(header: Header) -> dict[int, str]:
    """Return what tokens stand for by the file's metadata; what is damaged is left out: numbers are shown then."""
    try:
        found = json.loads(header.metadata.get("words", "{}"))
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {int(token): str(word)[:_LONGEST_WORD] for token, word in found.items() if token.isdecimal()}


@contextmanager
def _sized(root: Path, name: str, limit: int) -> Iterator[int]:
    """Open the plain file `root/name` of at most `limit` bytes."""
    with plain_file(root, name) as file:
        if (size := os.fstat(file).st_size) > limit:
            raise ValueError(f"{size} bytes, more than the {limit} that are read")
        yield file


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
