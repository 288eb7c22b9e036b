"""Examples inside the page: images as PNG data addresses, sequences of tokens with those that differ marked."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from metaleak.attacks.evaluation.similarity import LARGEST_PSNR
from metaleak.deploy.results.arrays import Gallery, Images, Pairs

_LARGEST = 128
"""Longest side in pixels of an image in the page; larger ones are scaled down."""


_TOKENS = 128


@dataclass(frozen=True)
class Tile:
    """One target: its images as `data:` addresses, whether it was a member, and its score.

    `difference` is the absolute difference of truth and reconstruction, and `psnr` their peak signal-to-noise ratio.
    """

    prior: str
    reconstruction: str
    truth: str
    difference: str
    psnr: float
    member: bool
    score: float


def tiles(gallery: Gallery) -> list[Tile]:
    """Return the gallery's targets, members first."""
    return [
        Tile(
            prior=png_address(gallery.prior[row]),
            reconstruction=png_address(gallery.reconstruction[row]),
            truth=png_address(gallery.truth[row]),
            difference=png_address(np.abs(gallery.truth[row] - gallery.reconstruction[row])),
            psnr=_psnr(gallery.truth[row], gallery.reconstruction[row]),
            member=bool(gallery.member[row]),
            score=float(gallery.score[row]),
        )
        for row in range(len(gallery.member))
    ]


@dataclass(frozen=True)
class Pair:
    """An example that learner number `learner` held and its reconstruction.

    `alike` is their similarity: PSNR in dB of images, of tokens the part in [0, 1] that is equal at its place.

    Of images the two, and their absolute difference, are `data:` addresses. Of tokens `tokens` are true and
    reconstructed token at each place, as words where these are known.
    """

    learner: int
    alike: float
    truth: str = ""
    reconstruction: str = ""
    difference: str = ""
    tokens: tuple[tuple[int | str, int | str], ...] = ()


def shown_pairs(pairs: Pairs) -> list[Pair]:
    """Return the pairs as the page shows them, what was recovered best first; of sequences the first 128 tokens."""
    shown = []
    for true, made, learner, alike in zip(pairs.truth, pairs.reconstruction, pairs.learner, pairs.alike, strict=True):
        if true.ndim == 1:
            places = zip(true[:_TOKENS].tolist(), made[:_TOKENS].tolist(), strict=True)
            tokens = tuple((pairs.words.get(one, one), pairs.words.get(other, other)) for one, other in places)
            shown.append(Pair(int(learner), float(alike), tokens=tokens))
        else:
            addresses = (png_address(true), png_address(made), png_address(np.abs(true - made)))
            shown.append(Pair(int(learner), float(alike), *addresses))
    return sorted(shown, key=lambda pair: -pair.alike)


def _psnr(truth: Images, made: Images) -> float:
    """Return the peak signal-to-noise ratio of values in [0, 1], in decibels."""
    error = float(np.mean((truth - np.clip(np.nan_to_num(made), 0, 1)) ** 2))
    return LARGEST_PSNR if error == 0 else min(LARGEST_PSNR, -10 * float(np.log10(error)))


def png_address(image: Images) -> str:
    """Return `image (C, H, W)`, C 1 or 3, as a PNG `data:` address; values are clipped to [0, 1], NaN is 0."""
    finite = np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.rint(np.clip(finite, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    picture.thumbnail((_LARGEST, _LARGEST))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
