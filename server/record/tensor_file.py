"""Tensor files in the safetensors format, written from the arrays' own memory and read without trusting the file.

    8 bytes    the length of the header, little-endian
    header     JSON: {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    the rest   the tensors' bytes, without a gap

The library `safetensors` is not used, because its writer reports a full disk by an error without a number, and its
reader may take many times a damaged file's size in memory.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from metaleak.clients.wire.arrays import Arrays, storage_order
from metaleak.server.record.plain_file import plain_file

HEADER_LIMIT = 2**20  # bytes; Python's JSON takes about thirty times as much
_DIMENSIONS = 32  # what every version of numpy has
_FIRST_READ = 4096  # most headers fit
_DTYPES = {
    "BOOL": "?",
    "I8": "i1",
    "U8": "u1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "F64": "<f8",
}
_BY_NAME = {name: np.dtype(short) for name, short in _DTYPES.items()}
_NAMES = {dtype: name for name, dtype in _BY_NAME.items()}


@dataclass(frozen=True)
class Spec:
    """The entry of one tensor in a header; `start` is its first byte, counted from the end of the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Header:
    """A header that was checked: the tensors fill the file's body without gaps, which begins at byte `body`."""

    metadata: dict[str, str]
    tensors: dict[str, Spec]
    body: int


def encoded(arrays: Arrays, metadata: dict[str, str]) -> tuple[Header, list[bytes | memoryview]]:
    """Return the header and the buffers whose concatenation is the file.

    The buffers are the arrays' own memory; only an array that is not contiguous or not little-endian is copied.
    Raises `ValueError` for arrays that the format, or `read_header`, does not allow.
    """
    if "__metadata__" in arrays:
        raise ValueError("a tensor cannot be called '__metadata__'")
    plain: Arrays = {}
    for name in storage_order({name: value.dtype for name, value in arrays.items()}):
        value = arrays[name]
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise ValueError(f"{name[:80]!r} has the type {value.dtype}, which safetensors does not have")
        plain[name] = np.asarray(value, dtype, order="C")
    tree: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, value in plain.items():
        start, end = end, end + value.nbytes
        tree[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    header = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    # The header is read back, so that no file is written that this module would refuse.
    parsed = _parsed(header, end)
    return parsed, [len(header).to_bytes(8, "little") + header, *(value.data for value in plain.values())]


def read_header(file: int) -> Header:
    """Read and check the header of an open file; raises `OSError`, and `ValueError` that says what is wrong."""
    size = os.fstat(file).st_size
    lead = os.pread(file, _FIRST_READ, 0)
    length = int.from_bytes(lead[:8], "little")
    if len(lead) < 8 or length > size - 8:
        raise ValueError(f"{size} bytes are less than its header needs")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header has {length} bytes, more than {HEADER_LIMIT}")
    raw = lead[8 : 8 + length] if 8 + length <= len(lead) else os.pread(file, length, 8)
    return _parsed(raw, size - 8 - length)


def read_tensor(file: int, header: Header, name: str, rows: slice | None = None) -> np.ndarray:
    """Read one tensor, or some adjacent `rows` of its leading axis, of an open file whose header is `header`.

    Raises `OSError`, and `ValueError` if the file is cut.
    """
    spec = header.tensors[name]
    first, shape = 0, spec.shape
    if rows is not None:
        first, last, _ = rows.indices(shape[0])
        shape = (max(0, last - first), *shape[1:])
    value = np.empty(shape, spec.dtype)
    rest = value.reshape(-1).view(np.uint8).data
    place = header.body + spec.start + first * math.prod(shape[1:]) * spec.dtype.itemsize
    while rest.nbytes:
        count = os.preadv(file, [rest], place)
        if not count:
            raise ValueError(f"ends inside of {name[:80]!r}")
        rest, place = rest[count:], place + count
    return value


def read_tensors(path: Path) -> tuple[dict[str, str], Arrays]:
    """Return the metadata and all tensors of the plain file `path`, which must not be a link.

    Raises `OSError`, and `ValueError` that says what is wrong.
    """
    with plain_file(path.parent, path.name) as file:
        header = read_header(file)
        return header.metadata, {name: read_tensor(file, header, name) for name in header.tensors}


def read_json(raw: bytes) -> object:
    """Parse JSON whose numbers are whole, not negative and below 10^18; raises `ValueError` for any other."""
    try:
        return json.loads(
            raw.decode(),
            object_pairs_hook=without_repeats,
            parse_int=_natural,
            parse_float=_refused,
            parse_constant=_refused,
        )
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a JSON object names a key twice")
    for key in found:
        key.encode()  # half of a surrogate pair is no text
    return found


def _natural(digits: str) -> int:
    if digits.startswith("-") or len(digits) > 18:
        raise ValueError("a number that cannot be")
    return int(digits)


def _refused(text: str) -> NoReturn:
    raise ValueError("a number that is not whole")


def _parsed(raw: bytes, body_bytes: int) -> Header:
    if len(raw) > HEADER_LIMIT:
        raise ValueError(f"its header would have {len(raw)} bytes, more than {HEADER_LIMIT}")
    tree = read_json(raw)
    if not isinstance(tree, dict) or not raw.startswith(b"{"):
        raise ValueError("its header is no JSON object")
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    tensors: dict[str, Spec] = {}
    place = 0
    for start, end, name, spec in sorted(_tensor(name, told) for name, told in tree.items()):
        if start != place or end - start != math.prod(spec.shape) * spec.dtype.itemsize:
            raise ValueError(f"the bytes of {name[:80]!r} do not fit its shape or its neighbors")
        place, tensors[name] = end, spec
    if place != body_bytes:
        raise ValueError(f"its tensors need {place} bytes and there are {body_bytes}")
    return Header(metadata, tensors, 8 + len(raw))


def _tensor(name: str, told: object) -> tuple[int, int, str, Spec]:
    match told:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, end], **rest} if (
            not rest and kind in _BY_NAME and all(type(number) is int for number in [start, end, *shape])
        ):
            dtype = _BY_NAME[kind]
        case _:
            raise ValueError(f"{name[:80]!r} has no type, shape and offsets that are known")
    # numpy refuses some shapes without a single byte, such as (2^60, 2^60, 0).
    if len(shape) > _DIMENSIONS or math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**62:
        raise ValueError(f"{name[:80]!r} has a shape that no array has")
    return start, end, name, Spec(dtype, tuple(shape), start)
