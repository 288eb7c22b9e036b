"""Unmixing separates known mixtures of real images, and the objective has the stated terms."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from metaleak.attacks.cocktail import unmixing
from metaleak.attacks.cocktail.unmixing import Mixture, Priors, found, images, mixture, objective, out_of_range, unmix
from metaleak.clients.datasets import MNIST

SHAPE = (1, 28, 28)
PRIORS = Priors(smooth=3.0, apart=0.1, range=10.0)


@pytest.fixture(scope="module")
def digits(shared_data) -> torch.Tensor:
    """Twelve real digits, float64 `(12, 784)` in [0, 1]."""
    return MNIST(data_dir=shared_data).load().examples[:12].flatten(1).double() / 255


def mixed(images: torch.Tensor, sized: bool = True) -> Mixture:
    """Return a random mixture of the images, as many combinations as images."""
    coefficients = torch.randn(len(images), len(images), generator=torch.Generator().manual_seed(0)).double()
    with_ones = torch.cat([images, torch.ones(len(images), 1)], dim=1) if sized else images
    return mixture(coefficients @ with_ones, SHAPE, sized)


def true_rows(images: torch.Tensor, mix: Mixture) -> torch.Tensor:
    """Return the rows `(n, K)` that make the images, of length 1."""
    rows = torch.linalg.lstsq(mix.raw.mT, images.mT).solution.mT
    return rows / rows.norm(dim=1, keepdim=True)


def test_a_mixture_is_white_and_contains_the_images(digits):
    mix = mixed(digits)
    assert torch.allclose(mix.white.mean(dim=1), torch.zeros(12).double(), atol=1e-9)
    assert torch.allclose(mix.white @ mix.white.mT / 784, torch.eye(12).double(), atol=1e-9)
    rows = true_rows(digits, mix)
    assert torch.allclose(images(rows, mix), digits, atol=1e-8)
    # Size and sign are those of the image, whatever the row's own are.
    assert torch.allclose(images(-3 * rows, mix), digits, atol=1e-8)
    assert out_of_range(rows, mix).max() < 1e-12
    assert out_of_range(rows[:6] - rows[6:], mix).min() > 0.05


def test_without_sizes_an_image_is_stretched_and_has_the_right_sign(digits):
    mix = mixed(digits, sized=False)
    # The digits reach from 0 to 1 themselves.
    assert torch.allclose(images(-true_rows(digits, mix), mix), digits, atol=0.02)


def test_the_objective_has_the_derivative_that_differences_have(digits):
    mix = mixed(digits[:3])
    rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    assert gradcheck(lambda rows: objective(rows, mix, PRIORS), rows)
    # The length of a row is of no importance.
    assert objective(rows, mix, PRIORS).item() == pytest.approx(objective(5 * rows, mix, PRIORS).item())


def test_each_term_has_its_defined_value():
    white = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]).double()
    mix = Mixture(white, white, torch.tensor([1.0, 1.0]).double(), (1, 2, 2))
    apart, same = torch.eye(2).double(), torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
    plain = objective(apart, mix, Priors(0, 0, 0)).item()
    assert plain == pytest.approx(-np.log(np.cosh(1) ** 2))
    # Across: 2 and 0, down: 0 and 2, of which total variation is the sum.
    assert objective(apart, mix, Priors(1, 0, 0)).item() - plain == pytest.approx(2.0)
    # Half of the values are -1, and so half of the energy is outside of [0, 1].
    assert objective(apart, mix, Priors(0, 0, 1)).item() - plain == pytest.approx(0.5)
    assert objective(apart, mix, Priors(0, 1, 0)).item() - plain == pytest.approx(0.0)
    # Two of four pairs, at a cosine of 1 and the sharpness 4.
    assert objective(same, mix, Priors(0, 1, 0)).item() - plain == pytest.approx(np.expm1(4) / 2)


def test_known_mixtures_of_real_images_are_separated(digits):
    mix = mixed(digits)
    rows = unmix(mix, PRIORS, iterations=300, restarts=3, generator=torch.Generator().manual_seed(0))
    made = images(rows[found(rows, mix)], mix)
    error = (made[:, None] - digits).square().mean(dim=2)
    # 30 dB and more; what is left are mixtures that lie in the range, too.
    assert (error.amin(dim=0) < 1e-3).sum() >= 9


def test_rows_start_anew_only_while_a_source_is_missing(digits, monkeypatch):
    mix = mixed(digits[:4])
    descended = []

    def at_the_images(rows, *_):
        descended.append(len(rows))
        return true_rows(digits[:4], mix)

    monkeypatch.setattr(unmixing, "_descended", at_the_images)
    unmix(mix, PRIORS, iterations=1, restarts=3, generator=torch.Generator().manual_seed(0))
    assert descended == [4]
