"""Batched L-BFGS on problems with known solutions."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from metaleak.attacks.inversion.lbfgs import LBFGS

TARGETS, SIZE = 6, 12


def problems(targets=TARGETS):
    """Regularized logistic regressions of very different scale: strictly convex, not quadratic."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((targets, 40, SIZE), generator=generator, dtype=torch.float64)
    features = features * torch.logspace(-1, 1, SIZE, dtype=torch.float64)
    signs = torch.sign(torch.randn((targets, 40), generator=generator, dtype=torch.float64))
    weights = torch.logspace(-3, 3, targets, dtype=torch.float64)

    def losses(points):
        margins = signs * (features @ points[:, :, None])[:, :, 0]
        fits = torch.nn.functional.softplus(-margins).mean(dim=1)
        return weights * (fits + 0.005 * points.square().sum(dim=1))

    return losses


def evaluated(losses, points):
    points = points.detach().requires_grad_()
    found = losses(points)
    return torch.autograd.grad(found.sum(), points)[0], found.detach()


def descend(losses, start, steps, rate=0.1, box=False):
    descent = LBFGS()
    values = {"asked": start[:, :5].clone(), "other": start[:, 5:].clone()}
    rates = {name: torch.full((1, 1), rate, dtype=start.dtype) for name in values}
    accepted = []
    for _ in range(steps):
        slopes, found = evaluated(losses, torch.cat(list(values.values()), dim=1))
        gradients = {"asked": slopes[:, :5], "other": slopes[:, 5:]}
        values = descent.advance(values, gradients, found, rates)
        if box:
            values = {name: value.clamp(0.0, 1.0) for name, value in values.items()}
        accepted.append(descent.settled(values, found)[1])
    settled, _ = descent.settled(values, found)
    return torch.cat([settled["asked"], settled["other"]], dim=1), torch.stack(accepted)


def test_it_converges_to_the_solution_of_scipy():
    losses = problems()
    found, accepted = descend(losses, torch.zeros(TARGETS, SIZE, dtype=torch.float64), steps=120)
    assert (accepted[1:] <= accepted[:-1]).all()
    for target in range(TARGETS):

        def alone(point, target=target):
            points = torch.zeros(TARGETS, SIZE, dtype=torch.float64)
            points[target] = torch.from_numpy(point)
            slopes, values = evaluated(losses, points)
            return values[target].item(), slopes[target].numpy()

        best = minimize(alone, np.zeros(SIZE), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12})
        assert accepted[-1, target].item() == pytest.approx(best.fun, rel=1e-8)
        assert np.allclose(found[target].numpy(), best.x, atol=1e-3)


def test_curvature_makes_it_fast():
    """Eighty evaluations of a quadratic with condition number 10 000, on which steepest descent hardly moves."""
    scales = torch.logspace(0, 4, SIZE, dtype=torch.float64)

    def losses(points):
        return (scales * points.square()).sum(dim=1)

    start = torch.ones(2, SIZE, dtype=torch.float64)
    _, accepted = descend(losses, start, steps=80)
    steepest = start
    for _ in range(80):
        slopes, _ = evaluated(losses, steepest)
        steepest = steepest - slopes / (2 * scales.max())
    assert (accepted[-1] < losses(steepest) / 100).all()


def test_a_target_is_independent_of_others():
    """Each target has its own history and step length, so its path does not depend on other targets."""
    losses = problems()
    start = torch.randn((TARGETS, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together, _ = descend(losses, start, steps=25)
    for target in (0, 4):

        def alone(points, target=target):
            padded = torch.zeros(TARGETS, SIZE, dtype=torch.float64)
            return losses(torch.cat([padded[:target], points, padded[target + 1 :]]))[target : target + 1]

        found, _ = descend(alone, start[target : target + 1], steps=25)
        assert torch.allclose(found[0], together[target], rtol=1e-6, atol=1e-9)


def test_a_rate_of_zero_fixes_a_value_and_the_first_trial_moves_by_the_rate():
    losses = problems()
    descent = LBFGS()
    values = {"asked": torch.ones(TARGETS, SIZE, dtype=torch.float64)}
    slopes, found = evaluated(losses, values["asked"])
    rates = torch.full((1, SIZE), 0.02, dtype=torch.float64)
    rates[0, :3] = 0.0
    moved = descent.advance(values, {"asked": slopes}, found, {"asked": rates})["asked"]
    assert torch.equal(moved[:, :3], values["asked"][:, :3])
    assert torch.allclose((moved - values["asked"]).abs().amax(dim=1), torch.tensor(0.02, dtype=torch.float64))


def test_losses_that_are_not_finite_are_not_accepted():
    """Beyond 1 the loss is NaN, and the first trial is there."""

    def losses(points):
        inside = (points - 0.9).square().sum(dim=1)
        return torch.where((points > 1).any(dim=1), torch.nan, inside)

    found, accepted = descend(losses, torch.zeros(2, SIZE, dtype=torch.float64), steps=30, rate=5.0)
    assert accepted.isfinite().all()
    assert torch.allclose(found, torch.full_like(found, 0.9), atol=1e-4)


def test_the_constrained_minimum_in_a_box_is_found():
    """Trials that the caller clamps count as clamped; the constrained minimum is on the boundary of the box."""

    def losses(points):
        return (points - 2.0).square().sum(dim=1)

    found, _ = descend(losses, torch.full((2, SIZE), 0.5, dtype=torch.float64), steps=20, box=True)
    assert torch.allclose(found, torch.ones_like(found))
