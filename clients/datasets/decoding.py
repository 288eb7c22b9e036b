"""Decoding an image file to a small square, with limits, so that a hostile file cannot fill the memory."""

import struct
import warnings
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""The largest image that is decoded, in pixels."""

# The exceptions with which Pillow's decoders report damage.
_DAMAGE = (OSError, SyntaxError, EOFError, ValueError, TypeError, IndexError, OverflowError, struct.error)


class Head(NamedTuple):
    """The properties of an image in its file's header; `gray` if its pixel format has no colors."""

    width: int
    height: int
    gray: bool


def head(file: IO[bytes], source: str) -> Head:
    """Return the header of the image in `file`; raises the errors of `decode` that the header shows.

    Only the header is read, except that Pillow reads an image with a palette as a whole.
    """
    image = _opened(file, source)
    if image.mode == "P":
        try:
            palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        except _DAMAGE as error:
            raise _unreadable(source, error) from error
        gray = bool((palette == palette[:, :1]).all())
    else:
        gray = image.mode in ("1", "L", "LA", "La")
    return Head(image.width, image.height, gray)


def decode(file: IO[bytes], source: str, size: int, gray: bool) -> npt.NDArray[np.uint8]:
    """Return the image in `file` as `(1 or 3, size, size)` uint8: its central square, antialiased.

    `source` names the file in errors. Raises `ValueError` when it is damaged, or has more than `MAX_PIXELS` pixels or
    more than 8 bits per channel.
    """
    image = _opened(file, source)
    try:
        upright = ImageOps.exif_transpose(image).convert("L" if gray else "RGB")
        square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except _DAMAGE as error:
        raise _unreadable(source, error) from error
    pixels = np.asarray(square, dtype=np.uint8)
    return pixels[np.newaxis] if gray else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _opened(file: IO[bytes], source: str) -> Image.Image:
    """Return the opened image, checked against the limits; only its header has been read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{source} has more than {MAX_PIXELS} pixels") from error
    except _DAMAGE as error:
        raise _unreadable(source, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{source} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{source} has more than 8 bits per channel (mode {image.mode}): convert it first")
    return image


def _unreadable(source: str, error: Exception) -> ValueError:
    # Pillow names the file object, which does not help a user.
    reason = "of no known format" if "cannot identify" in str(error) else " ".join(str(error).split())
    return ValueError(f"{source} is damaged or no image: {reason}")
