"""Reading an attack's scores and galleries: shapes are known, and bounded, before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

MEGABYTE = 1 << 20
MAX_SCORES_FILE = 512 * MEGABYTE
MAX_TARGETS = 5_000_000
MAX_GALLERY_FILE = 1024 * MEGABYTE
MAX_IMAGE_VALUES = 3 * 1024 * 1024
SHOWN = 8

Scores = NDArray[np.float64]
Bools = NDArray[np.bool_]
Images = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Some targets as an attack saw them: the file's first members and first non-members, at most 8 of each.

    `prior`, `reconstruction` and `truth` are `(n, C, H, W)` float32, meant to lie in [0, 1], C 1 or 3;
    `truth` is the image that the learner really held at that position. `member (n,)` booleans, `score (n,)`.
    """

    prior: Images
    reconstruction: Images
    truth: Images
    member: Bools
    score: Images


def sized(path: Path, limit: int) -> Path:
    """Return `path`, or raise `ValueError` when the file has more than `limit` bytes."""
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{path}: {size} bytes, more than the {limit} that are read")
    return path


def read_scores(path: Path) -> tuple[Scores, Bools]:
    """Return `scores (T,)` and `member (T,)` from a Parquet file, both empty when there is none.

    Raises `ValueError` for a damaged file, a missing column, another type, or more than 5 million targets.
    """
    if not path.exists():
        return np.empty(0), np.empty(0, np.bool_)
    try:
        with pq.ParquetFile(sized(path, MAX_SCORES_FILE)) as file:
            if (rows := file.metadata.num_rows) > MAX_TARGETS:
                raise ValueError(f"{path}: {rows} targets, more than the {MAX_TARGETS} that are read")
            schema = file.schema_arrow
            for column, wanted in (("score", pa.types.is_floating), ("member", pa.types.is_boolean)):
                if schema.get_field_index(column) < 0 or not wanted(schema.field(column).type):
                    raise ValueError(f"{path}: no column {column!r} of the expected type")
            table = file.read(columns=["score", "member"])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {_line(error)}") from error
    if table["score"].null_count or table["member"].null_count:
        raise ValueError(f"{path}: empty cells in 'score' or 'member'")
    scores = table["score"].to_numpy().astype(np.float64)
    if missing := int(np.isnan(scores).sum()):
        raise ValueError(f"{path}: {missing} of {len(scores)} scores are NaN")
    return scores, table["member"].to_numpy().astype(np.bool_)


def read_gallery(path: Path) -> Gallery | None:
    """Return a few rows of a gallery, `None` when there is none; only those rows are loaded.

    Raises `ValueError` for a damaged file, shapes that do not fit, or images of more than 3 million values.
    """
    if not path.exists():
        return None
    try:
        with safe_open(sized(path, MAX_GALLERY_FILE), framework="numpy") as file:
            names = {"prior", "reconstruction", "truth", "member", "score"}
            if missing := sorted(names - set(file.keys())):
                raise ValueError(f"{path}: no {', '.join(missing)}")
            slices = {name: file.get_slice(name) for name in names}
            shape = tuple(slices["prior"].get_shape())
            if len(shape) != 4 or shape[1] not in (1, 3) or not 0 < np.prod(shape[1:]) <= MAX_IMAGE_VALUES:
                raise ValueError(f"{path}: prior {shape} is not (n, 1 or 3, height, width) of a showable size")
            for name in sorted(names):
                expected = shape if name in ("prior", "reconstruction", "truth") else shape[:1]
                if (found := tuple(slices[name].get_shape())) != expected:
                    raise ValueError(f"{path}: {name} {found} does not fit prior {shape}")
            member = np.asarray(slices["member"][:]) != 0
            rows = np.concatenate([np.flatnonzero(member)[:SHOWN], np.flatnonzero(~member)[:SHOWN]])
            score = np.asarray(slices["score"][:], np.float32)

            def images(name: str) -> Images:
                chosen = [np.asarray(slices[name][int(row) : int(row) + 1], np.float32) for row in rows]
                return np.concatenate([np.empty((0, *shape[1:]), np.float32), *chosen])

            return Gallery(
                prior=images("prior"),
                reconstruction=images("reconstruction"),
                truth=images("truth"),
                member=member[rows],
                score=score[rows],
            )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
