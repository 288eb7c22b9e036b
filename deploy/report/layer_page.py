"""The page of a layer-wise inversion: each layer's true input and its reconstruction, side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaleak.deploy.report.examples import png_address
from metaleak.deploy.report.page_template import page_template
from metaleak.deploy.results.arrays import Images
from metaleak.server.record.whole_file import write_whole

_CHANNELS = 16
"""The most channels of a feature map that are shown."""

_ROW = 4
"""Channels side by side."""


@dataclass(frozen=True, eq=False)
class LayerView:
    """The input of one layer, `(C, H, W)` or `(n,)`: the `truth`, and `made`, what one method rebuilt.

    `missed` is the relative residual of the layer's constraints. `constraints` says in words how many of the unknowns
    they determine, or is empty where that is not known.
    """

    name: str
    truth: Images
    made: Images
    missed: float
    constraints: str = ""

    @property
    def error(self) -> float:
        """Return the distance of the two, as a part of the truth's norm."""
        apart = float(np.linalg.norm(self.made - self.truth))
        return apart / max(float(np.linalg.norm(self.truth)), 1e-300)

    @property
    def pictures(self) -> tuple[str, str]:
        """Return truth and reconstruction as `data:` addresses, on the gray scale of the truth."""
        low, high = float(self.truth.min()), float(self.truth.max())
        scale = high - low if high > low else 1.0
        truth, made = (png_address(_sheet((one - low) / scale)) for one in (self.truth, self.made))
        return truth, made


@dataclass(frozen=True)
class Inversion:
    """One `method`: its layers from the last to the first, and the `psnr` of the example in dB, peak 1.

    `refused` is why it cannot be made, where it cannot; then there are no layers.
    """

    method: str
    layers: Sequence[LayerView] = ()
    psnr: float = 0.0
    refused: str = ""

    @property
    def example(self) -> tuple[str, str]:
        """Return the example and its reconstruction as `data:` addresses, in their own colors."""
        return png_address(self.layers[-1].truth), png_address(self.layers[-1].made)


def write_layer_page(
    path: Path, title: str, facts: Sequence[tuple[str, str]], verdict: Sequence[str], inversions: Sequence[Inversion]
) -> None:
    """Write the page, one HTML file that needs no network and nothing beside it; raises `OSError`."""
    page = page_template("layers.html.j2").render(
        title=title, facts=facts, verdict=verdict, inversions=inversions, part_text=part_text
    )
    write_whole(path, page.encode())


def part_text(value: float) -> str:
    """Return a part as text: powers of ten where it is small or large."""
    if not math.isfinite(value):
        return "not a number"
    return f"{value:.1e}" if value and not 0.001 <= value < 1000 else f"{value:.3f}"


def _sheet(values: Images) -> Images:
    """Return a vector as rows of a square, and a feature map as its first channels side by side, `(1 or 3, H, W)`."""
    if values.ndim == 1:
        side = math.ceil(math.sqrt(len(values)))
        square = np.zeros(side * math.ceil(len(values) / side), np.float32)
        square[: len(values)] = values
        return square.reshape(1, -1, side)
    if len(values) in (1, 3):
        return values
    shown = values[:_CHANNELS]
    columns = min(_ROW, len(shown))
    padded = np.pad(shown, ((0, -len(shown) % columns), (0, 1), (0, 1)))
    rows = [np.concatenate(list(padded[start : start + columns]), axis=1) for start in range(0, len(padded), columns)]
    return np.concatenate(rows)[None]
