"""The learned perceptual distance LPIPS, version 0.1, with AlexNet (Zhang et al. 2018), computed without torch."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_STAGES = (
    ("features.0", (64, 3, 11, 11), 4, 2, False),
    ("features.3", (192, 64, 5, 5), 1, 2, True),
    ("features.6", (384, 192, 3, 3), 1, 1, True),
    ("features.8", (256, 384, 3, 3), 1, 1, False),
    ("features.10", (256, 256, 3, 3), 1, 1, False),
)
"""AlexNet's convolutions: name, shape, stride, padding, and whether max pooling (size 3, stride 2) precedes."""

_SHAPES = {
    **{f"{name}.weight": shape for name, shape, *_ in _STAGES},
    **{f"{name}.bias": shape[:1] for name, shape, *_ in _STAGES},
    **{f"lin{place}.model.1.weight": (1, shape[0], 1, 1) for place, (_, shape, *_) in enumerate(_STAGES)},
}
"""The arrays of the published weights, with their shapes."""

_HEADER = 1024
"""The largest size of an array's header, in bytes."""

_SHIFT, _SCALE = (np.array(one, np.float32) for one in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
"""Subtracted from the channels of an image in [-1, 1], and then divided by."""

SMALLEST = 64
"""The side in pixels to which smaller images are enlarged: that of the patches on which LPIPS was trained."""

_PIXELS = 2**18
"""The number of pixels compared at a time."""

_EPSILON = 1e-10


@dataclass(frozen=True, eq=False)
class Lpips:
    """The perceptual distance of two images: 0 for equal images, about 0.7 for very different ones.

    `weights`: the published ones by name. Source: Zhang, Isola, Efros, Shechtman, Wang 2018, "The unreasonable
    effectiveness of deep features as a perceptual metric", equation 1, with the learned linear heads of version 0.1.
    """

    weights: dict[str, Singles]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the distance with the weights of an `.npz` file; raises `ValueError` if it has other arrays."""
        try:
            with zipfile.ZipFile(path) as archive:
                sizes = {one.filename.removesuffix(".npy"): one.file_size for one in archive.infolist()}
            if sizes.keys() != _SHAPES.keys() or any(
                size > 4 * prod(_SHAPES[name]) + _HEADER for name, size in sizes.items()
            ):
                raise ValueError("its arrays are not those of LPIPS with AlexNet")
            with np.load(path, allow_pickle=False) as found:
                weights = {name: found[name] for name in _SHAPES}
        except (OSError, ValueError, RuntimeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        for name, values in weights.items():
            if values.shape != _SHAPES[name] or values.dtype != np.float32 or not np.isfinite(values).all():
                raise ValueError(f"{path} is damaged: {name} must be finite float32 of the shape {_SHAPES[name]}")
        return cls(weights)

    def __call__(self, reconstructed: Floats, true: Floats) -> Floats:
        """Return the distance between each image of `reconstructed` and that of `true`, `(n,)`.

        Both are `(n, C, H, W)` in [0, 1] with C = 1 or 3; the channel of a gray image is used three times. Where a
        side is shorter than 64 pixels, both images are enlarged bilinearly until it has 64: the network needs 31, and
        LPIPS was trained on 64. Raises `ValueError` for another number of channels.
        """
        if true.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS: images must have 1 or 3 channels, got {true.shape[1]}")
        step = max(1, _PIXELS // max(SMALLEST**2, prod(true.shape[2:])))
        found = [
            self._distances(reconstructed[start : start + step], true[start : start + step])
            for start in range(0, len(true), step)
        ]
        return np.concatenate([np.zeros(0), *found])

    def _distances(self, reconstructed: Floats, true: Floats) -> Floats:
        distances = np.zeros(len(true))
        pairs = zip(self._features(reconstructed), self._features(true), strict=True)
        for place, (one, other) in enumerate(pairs):
            heads = self.weights[f"lin{place}.model.1.weight"].reshape(-1, 1, 1)
            distances += (heads * (one - other) ** 2).sum(axis=1).mean(axis=(1, 2))
        return distances

    def _features(self, images: Floats) -> Iterator[Singles]:
        """Yield the features of each stage `(n, channels, h, w)`, normalized to length 1 over the channels."""
        height, width = images.shape[2:]
        factor = max(1.0, SMALLEST / min(height, width))
        rows, columns = (_enlarging(side, round(side * factor)) for side in (height, width))
        shown = (2 * (rows @ images @ columns.T) - 1).astype(np.float32)
        values = (shown - _SHIFT.reshape(3, 1, 1)) / _SCALE.reshape(3, 1, 1)
        for name, _, stride, padding, pooled in _STAGES:
            if pooled:
                values = sliding_window_view(values, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
            values = np.maximum(_convolved(values, weight, stride, padding) + bias.reshape(-1, 1, 1), 0)
            yield values / (np.sqrt((values**2).sum(axis=1, keepdims=True)) + _EPSILON)


def _convolved(values: Singles, weight: Singles, stride: int, padding: int) -> Singles:
    around = (padding, padding)
    padded = np.pad(values, ((0, 0), (0, 0), around, around))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.asarray(np.moveaxis(np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))), -1, 1))


def _enlarging(side: int, wanted: int) -> Floats:
    """Return the matrix `(wanted, side)` of linear interpolation between pixel centers."""
    places = np.clip((np.arange(wanted) + 0.5) * side / wanted - 0.5, 0, side - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side))))
