"""Images inside the page: galleries of prior, reconstruction and true image as PNG data addresses."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from metaleak.deploy.results.arrays import Gallery, Images

_LARGEST = 128
"""Longest side in pixels of an image in the page; larger ones are scaled down."""


@dataclass(frozen=True)
class Tile:
    """One target: its three images as `data:` addresses, whether it was a member, and its score."""

    prior: str
    reconstruction: str
    truth: str
    member: bool
    score: float


def tiles(gallery: Gallery) -> list[Tile]:
    """Return the gallery's targets, members first."""
    return [
        Tile(
            prior=png_address(gallery.prior[row]),
            reconstruction=png_address(gallery.reconstruction[row]),
            truth=png_address(gallery.truth[row]),
            member=bool(gallery.member[row]),
            score=float(gallery.score[row]),
        )
        for row in range(len(gallery.member))
    ]


def png_address(image: Images) -> str:
    """Return `image (C, H, W)`, C 1 or 3, as a PNG `data:` address; values are clipped to [0, 1], NaN is 0."""
    finite = np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.rint(np.clip(finite, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    picture.thumbnail((_LARGEST, _LARGEST))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
