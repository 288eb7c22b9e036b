"""The closed form of the evidence equals the ratio of determinants."""

import pytest
import torch

from metaleak.attacks.span.evidence import evidence_of_direction, evidence_of_units, seen, whitened


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fall(gradient, prior, image, direction, scale):
    """Half the rows times the log of how far |prior + G'G| falls when scale * direction image' is subtracted."""
    less = gradient - scale * direction[:, None] * image[None]
    whole, rest = (torch.logdet(prior + one.mT @ one) for one in (gradient, less))
    return len(gradient) / 2 * (whole - rest)


@pytest.mark.parametrize("height", [7, 30])
def test_evidence_of_a_direction_is_the_largest_fall_of_the_determinant(height):
    gradient, others = random(height, 20), random(20, 20, seed=1)
    others, image = others @ others.mT, random(20, seed=2)
    white = whitened(gradient, others, 0.3)
    prior = white.root @ white.root.mT
    trust = torch.eye(20, dtype=torch.float64) + 10 * height / others.trace() * others
    assert torch.allclose(prior, trust * 0.3**2 * 20)
    for seed in range(3, 8):
        direction = random(height, seed=seed)
        found = float(evidence_of_direction(white, seen(white, image[None]), direction[None]))
        falls = [fall(gradient, prior, image, direction, t) for t in torch.linspace(-1, 1, 4001, dtype=torch.float64)]
        best = max(range(4001), key=lambda place: falls[place])
        assert abs(found) == pytest.approx(float(falls[best]), rel=1e-3, abs=1e-4)
        assert (found > 0) == (best > 2000)
        assert found == pytest.approx(
            float(evidence_of_direction(white, seen(white, image[None]), 7 * direction[None])), rel=1e-9
        )


def test_a_direction_of_zeros_and_inactive_units_give_no_evidence():
    white = whitened(random(6, 9), None, 0.1)
    image = seen(white, random(2, 9, seed=1))
    assert evidence_of_direction(white, image, torch.zeros(2, 6, dtype=torch.float64)).tolist() == [0, 0]
    assert evidence_of_units(white, image, torch.zeros(2, 6, dtype=torch.float64)).tolist() == [0, 0]
    one = torch.zeros(2, 6, dtype=torch.float64)
    one[:, 3] = 1
    assert torch.allclose(evidence_of_units(white, image, one), evidence_of_direction(white, image, one).abs())


def test_without_noise_the_inverse_is_the_same_without_squares(monkeypatch):
    gradient, images = random(12, 4) @ random(4, 20, seed=1), random(3, 20, seed=2)
    squared = whitened(gradient, None, 1e-2)
    monkeypatch.setattr("metaleak.attacks.span.evidence._SQUARED", 0.0)
    exact = whitened(gradient, None, 1e-2)
    assert squared.onto is squared.rows
    assert exact.onto is not exact.rows
    assert torch.allclose(squared.left_over, exact.left_over, atol=1e-10)
    assert torch.allclose(seen(squared, images).dual, seen(exact, images).dual, atol=1e-10)
    # As good as without noise, a member is explained to the last digit and another image is not.
    least = seen(whitened(gradient, None, 1e-9), torch.cat([random(4, 20, seed=1), images])).unexplained
    assert float(least[:4].max()) < 1e-12 * float(least[4:].min())
