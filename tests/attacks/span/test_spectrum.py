"""The noise level by the Marchenko-Pastur edge, on simulated matrices."""

import pytest
import torch

from metaleak.attacks.span.spectrum import marchenko_pastur_edge, noise_floor, row_space_above_noise


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rows, columns, rank, seed=1):
    left, right = noise(rows, rank, seed), noise(rank, columns, seed + 1)
    return torch.linalg.qr(left)[0] @ torch.diag(torch.logspace(0, -1, rank, dtype=torch.float64)) @ right


@pytest.mark.parametrize(("rows", "columns"), [(60, 400), (200, 200), (400, 60)])
def test_the_largest_singular_value_of_noise_is_at_the_edge(rows, columns):
    largest = [float(torch.linalg.svdvals(3 * noise(rows, columns, seed))[0]) for seed in range(5)]
    edge = marchenko_pastur_edge(rows, columns, 3.0)
    # Tracy and Widom: fluctuations of the order edge * size^(-2/3), the mean a little inside.
    assert max(largest) < 1.03 * edge
    assert min(largest) > 0.93 * edge


@pytest.mark.parametrize("rank", [0, 5, 40])
def test_the_floor_finds_deviation_and_rank_together(rank):
    matrix = 1e-3 * noise(80, 500) + (low_rank(80, 500, rank) if rank else 0)
    floor = noise_floor(torch.linalg.svdvals(matrix), 80, 500)
    assert floor.rank == rank
    assert floor.deviation == pytest.approx(1e-3, rel=0.02)


def test_a_known_deviation_is_used():
    values = torch.linalg.svdvals(1e-3 * noise(80, 500) + low_rank(80, 500, 20))
    assert noise_floor(values, 80, 500, deviation=1e-3).deviation == 1e-3
    assert noise_floor(values, 80, 500, deviation=1e-3).rank == 20
    assert noise_floor(values, 80, 500, deviation=1.0).rank < 20


def test_float32_rounding_does_not_count_as_signal():
    assert noise_floor(torch.linalg.svdvals(low_rank(80, 500, 20).float()), 80, 500).rank == 20


def test_of_a_matrix_without_noise_one_value_counts_as_noise():
    assert noise_floor(torch.ones(10), 10, 1000).rank in (0, 9)
    assert noise_floor(torch.logspace(0, -3, 10), 10, 1000).rank == 9
    assert noise_floor(torch.zeros(10), 10, 1000).rank == 0


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_the_row_space_is_that_of_the_decomposition(shape):
    matrix = low_rank(*shape, 12)
    space = row_space_above_noise(matrix)
    _, values, vectors = torch.linalg.svd(matrix)
    assert torch.allclose(space.values, values[:12], rtol=1e-9)
    assert torch.allclose(space.basis @ space.basis.mT, torch.eye(12, dtype=torch.float64), atol=1e-12)
    # The same subspaces, direction by direction.
    assert torch.allclose(
        (space.basis * vectors[:12]).sum(dim=1).abs(), torch.ones(12, dtype=torch.float64), atol=1e-9
    )
