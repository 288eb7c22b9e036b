"""Ranks of constraints are found without matrix and data, and equal the rank of the matrix."""

import itertools
from dataclasses import replace

import pytest
import torch

from metaleak.attacks.layerwise.operators import dense_matrix
from metaleak.attacks.layerwise.security import MEMORY, ConvolutionShape, Rank, contributions, rank_of, security
from metaleak.clients.models import Sliding
from metaleak.clients.randomness import keyed_generator


def convolution(filters, channels, kernel, side, stride=1, padding=0, groups=1):
    sliding = Sliding((stride, stride), (padding, padding), groups=groups)
    return ConvolutionShape((filters, channels // groups, kernel, kernel), (channels, side, side), sliding)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (convolution(6, 3, 3, 32), 0),
        (convolution(6, 3, 4, 32, stride=2), -1470),
        (convolution(1, 3, 3, 32), -2146),
        (convolution(3, 3, 3, 32, padding=1), 0),
        (convolution(20, 12, 3, 17, stride=2, padding=1), -280),
    ],
)
def test_published_values(shape, expected):
    """The first four: the official code's; the last is the second convolution of R-GAP's CNN6-d."""
    found = rank_of(shape)
    assert security([found]) == expected
    assert found.exact


def test_the_rank_is_that_of_the_matrix_with_random_weights():
    shapes = itertools.product((1, 2, 5), (1, 3), (1, 2, 3), (1, 2, 3), (0, 1), (1,))
    generator = keyed_generator("weights")
    for filters, channels, kernel, stride, padding, groups in [*shapes, (4, 4, 3, 2, 1, 2), (6, 3, 3, 1, 1, 3)]:
        if padding >= kernel:
            continue
        shape = convolution(filters, channels, kernel, 7, stride, padding, groups)
        operator = shape.drawn(generator)
        operator = replace(operator, weight=torch.randn(shape.weight, generator=generator, dtype=torch.float64))
        dz = torch.randn(operator.output_shape, generator=generator, dtype=torch.float64)
        values = torch.linalg.svdvals(dense_matrix(operator, dz))
        assert rank_of(shape).rank == int((values > 1e-9 * values[0]).sum()), shape


def test_shapes_that_take_too_much_memory_are_refused():
    shape = convolution(4096, 4096, 3, 224)
    with pytest.raises(
        ValueError, match=r"^the rank of a convolution of weight .* would take 33\.3 GiB of memory: at most 2 GiB"
    ):
        rank_of(shape)
    # The first convolution of ResNet-18.
    assert convolution(64, 3, 7, 224, stride=2, padding=3).memory < MEMORY


def test_convolutions_nearer_to_the_image_have_more_weight():
    ranks = [Rank(10, 5, 5, 8), Rank(10, 5, 5, 10), Rank(10, 5, 5, 7)]
    assert contributions(ranks) == pytest.approx([-2.0, 0.0, -1.0])
    assert security(ranks) == pytest.approx(-3.0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [convolution(32, 32, 3, 42, padding=1), convolution(64, 64, 3, 32, padding=1)])
def test_large_layers_are_determined(shape):
    """Conv4's second block on 84x84 images, and ResNet-18's first stage on 32x32."""
    found = rank_of(shape)
    assert (found.deficit, found.exact) == (0, True)
