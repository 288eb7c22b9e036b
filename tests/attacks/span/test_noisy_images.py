"""The likelihood of a noisy span equals an integral by sampling, and distinguishes members."""

import math

import pytest
import torch

from metaleak.attacks.span.noisy_images import _log_moment, noisy_precision, noisy_span_evidence


@pytest.mark.parametrize("dimension", [2, 30, 100])
@pytest.mark.parametrize("power", [20, 340])
def test_the_moment_of_a_chi_square_is_the_known_one(dimension, power):
    exact = math.lgamma(power + dimension / 2) - math.lgamma(dimension / 2) + power * math.log(2 * 0.7**2)
    mean, values = torch.zeros(1, dimension, dtype=torch.float64), torch.ones(dimension, dtype=torch.float64)
    assert float(_log_moment(mean, values, 0.7, power)) == pytest.approx(exact, abs=1 / dimension)


def test_the_moment_of_a_quadratic_form_equals_that_of_samples():
    generator = torch.Generator().manual_seed(0)
    mean, values = torch.tensor([1.0, -0.5, 2.0]).double(), torch.tensor([0.2, 1.0, 0.5]).double()
    drawn = mean + 0.4 * torch.randn(400_000, 3, generator=generator, dtype=torch.float64)
    sampled = (drawn.square() @ values).pow(3).mean().log()
    assert float(_log_moment(mean[None], values, 0.4, 3.0)) == pytest.approx(float(sampled), abs=0.1)


def test_it_finds_the_images_of_a_noisy_span_better_than_their_distance():
    generator = torch.Generator().manual_seed(1)
    pixels, held, deviation = 120, 15, 4.0
    # Images are large in few directions, as real ones.
    spread = torch.logspace(1, -1, pixels, dtype=torch.float64)
    members, outsiders = [], []
    for _ in range(20):
        images = torch.randn(2 * held, pixels, generator=generator, dtype=torch.float64) * spread
        noisy = images[:held] + deviation * torch.randn(held, pixels, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(noisy.mT)[0].mT
        scores = noisy_span_evidence(
            images, basis, noisy_precision(torch.diag(spread.square()), deviation), deviation
        )
        distances = (images - images @ basis.mT @ basis).norm(dim=1) / images.norm(dim=1)
        members.append(torch.stack([scores[:held], -distances[:held]]))
        outsiders.append(torch.stack([scores[held:], -distances[held:]]))
    inside, outside = torch.cat(members, dim=1), torch.cat(outsiders, dim=1)
    auc = (inside[:, :, None] > outside[:, None]).double().mean(dim=(1, 2))
    assert auc[0] > 0.95
    assert 1 - auc[0] < (1 - auc[1]) / 3
