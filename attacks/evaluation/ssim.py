"""The structural similarity of images (Wang et al. 2004)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WINDOW = 11
"""The largest side of the Gaussian window, in pixels; its standard deviation is `_DEVIATION`."""

_DEVIATION = 1.5

_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2
"""The constants that keep the quotients finite, for values in [0, 1]."""


def ssim(reconstructed: Floats, true: Floats) -> Floats:
    """Return the structural similarity of images `(..., C, H, W)` in [0, 1], averaged over channels, `(...)`.

    It is in [-1, 1], and 1 for equal images. Windows lie inside the image; they are 11 pixels wide, or in a smaller
    image the largest odd number that fits. Source: Wang, Bovik, Sheikh, Simoncelli 2004, equation 13.

    Example:
        >>> image = np.random.default_rng(0).random((1, 16, 16))
        >>> float(ssim(image, image).round(6)), bool(ssim(1 - image, image) < 0)
        (1.0, True)
    """
    rows, columns = (_window(side) for side in true.shape[-2:])

    def weighted(values: Floats) -> Floats:
        return np.asarray(rows @ values @ columns.T)

    mean, other = weighted(reconstructed), weighted(true)
    covariance = weighted(reconstructed * true) - mean * other
    variances = weighted(reconstructed**2) - mean**2 + weighted(true**2) - other**2
    luminance = (2 * mean * other + _LUMINANCE) / (mean**2 + other**2 + _LUMINANCE)
    alike = luminance * (2 * covariance + _CONTRAST) / (variances + _CONTRAST)
    return np.asarray(alike.mean(axis=(-3, -2, -1)))


def _window(side: int) -> Floats:
    """Return the matrix `(windows, side)` of the weighted mean over each window along one side."""
    width = min(_WINDOW, side - 1 + side % 2)
    offsets = np.arange(width) - (width - 1) / 2
    weights = np.exp(-0.5 * (offsets / _DEVIATION) ** 2)
    matrix = np.zeros((side - width + 1, side))
    for place, row in enumerate(matrix):
        row[place : place + width] = weights / weights.sum()
    return matrix
