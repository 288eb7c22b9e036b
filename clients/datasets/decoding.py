"""One image file to one small square of bytes, within limits that keep a hostile file from filling memory."""

import struct
import warnings
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""The largest image that is decoded, in pixels."""

# What Pillow's decoders are known to report damage by.
_DAMAGE = (OSError, SyntaxError, EOFError, ValueError, TypeError, IndexError, OverflowError, struct.error)


def decode(file: IO[bytes], source: str, size: int, grey: bool) -> npt.NDArray[np.uint8]:
    """Return the image in `file` as `(1 or 3, size, size)` uint8: its central square, antialiased.

    `source` names the file in errors. Raises `ValueError` when it is damaged, has more than `MAX_PIXELS`, or
    more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{source} has more than {MAX_PIXELS} pixels") from error
    except _DAMAGE as error:
        raise _unreadable(source, error) from error
    # Only the head has been read so far.
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{source} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{source} has more than 8 bits a channel (mode {image.mode}): convert it first")
    try:
        upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
        square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except _DAMAGE as error:
        raise _unreadable(source, error) from error
    pixels = np.asarray(square, dtype=np.uint8)
    return pixels[np.newaxis] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _unreadable(source: str, error: Exception) -> ValueError:
    # Pillow names the file object, which says nothing to a user.
    reason = "of no known format" if "cannot identify" in str(error) else " ".join(str(error).split())
    return ValueError(f"{source} is damaged or no image: {reason}")
