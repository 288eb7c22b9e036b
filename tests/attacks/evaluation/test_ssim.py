"""SSIM has the value of its definition, and falls with noise on real images."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.evaluation.ssim import ssim

DIGITS = load_digits().images[:4].reshape(1, 4, 1, 8, 8) / 16
PHOTO = np.moveaxis(load_sample_image("china.jpg")[100:132, 200:240] / 255, -1, 0)


def by_definition(ours, true, width):
    """Return the mean over windows and channels, computed window by window."""
    offsets = np.arange(width) - width // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for one, other in zip(ours, true, strict=True):
        for row, column in np.ndindex(one.shape[0] - width + 1, one.shape[1] - width + 1):
            x, y = (image[row : row + width, column : column + width] for image in (one, other))
            mean, mean_other = (weights * x).sum(), (weights * y).sum()
            variances = (weights * (x - mean) ** 2).sum() + (weights * (y - mean_other) ** 2).sum()
            covariance = (weights * (x - mean) * (y - mean_other)).sum()
            luminance = (2 * mean * mean_other + 1e-4) / (mean**2 + mean_other**2 + 1e-4)
            found.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    return np.mean(found)


def noisy(images, scale):
    return images + scale * np.random.default_rng(0).normal(size=images.shape)


@pytest.mark.parametrize(("image", "width"), [(PHOTO, 11), (DIGITS[0, 0], 7)])
def test_it_has_the_value_of_its_definition(image, width):
    assert ssim(noisy(image, 0.1), image) == pytest.approx(by_definition(noisy(image, 0.1), image, width))


def test_equal_images_have_1_and_noise_has_less():
    assert ssim(PHOTO, PHOTO) == pytest.approx(1)
    found = [ssim(noisy(PHOTO, scale), PHOTO) for scale in (0.0, 0.02, 0.05, 0.1, 0.2)]
    assert found == sorted(found, reverse=True)
    assert ssim(1 - PHOTO, PHOTO) < 0, "an image and its negative have opposite structure"


def test_it_is_measured_with_psnr_and_an_image_without_a_partner_is_compared_with_gray():
    _, measures = similarity("image", DIGITS[:, :2], DIGITS)
    found = {measure.name: measure for measure in measures}
    gray = ssim(np.full_like(DIGITS[0, 2:], 0.5), DIGITS[0, 2:])
    assert found["SSIM"].value == pytest.approx((2 + gray.sum()) / 4)
    _, measures = similarity("image", np.full((1, 1, 1, 1, 1), 1e30), np.ones((1, 1, 1, 1, 1)))
    assert {measure.name: measure.value for measure in measures}["SSIM"] == 1, "what is out of range is shown as 1"
