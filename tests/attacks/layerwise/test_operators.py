"""A layer's constraint functions equal their matrix, and their solution that of its pseudo-inverse."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaleak.attacks.layerwise.least_squares import Constraints, solve
from metaleak.attacks.layerwise.operators import Convolution, Dense, dense_matrix, operator_of
from metaleak.clients.models import INPUT, Layer, Sliding
from metaleak.clients.randomness import keyed_generator


def drawn(*shape: int, key: str) -> torch.Tensor:
    return torch.randn(shape, generator=keyed_generator(key), dtype=torch.float64)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=25, deadline=None)
@given(
    stride=pairs,
    padding=pairs,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
)
def test_a_convolutions_maps_are_torchs_and_their_adjoints(stride, padding, dilation, groups):
    operator = Convolution(
        drawn(4, 2 // groups, 3, 2, key="weight"), (2, 7, 6), Sliding(stride, padding, dilation, groups)
    )
    x, dz = drawn(2, 7, 6, key="x"), drawn(*operator.output_shape, key="dz")

    def loss(x, weight):
        return (F.conv2d(x[None], weight, None, stride, padding, dilation, groups)[0] * dz).sum()

    at_input, at_weight = torch.func.grad(loss, argnums=(0, 1))(x, operator.weight)
    assert torch.allclose(operator.backward(dz), at_input)
    assert torch.allclose(operator.weight_gradient(x, dz), at_weight)
    constraints = Constraints(operator, dz, at_weight, operator.forward(x))
    values = drawn(*constraints.values.shape, key="values")
    assert torch.isclose((constraints.apply(x) * values).sum(), (constraints.adjoint(values) * x).sum())


@pytest.mark.parametrize("sliding", [Sliding(), Sliding((3, 2), (2, 0), (1, 2)), Sliding((2, 2), (1, 1))])
def test_the_solution_is_that_of_the_pseudo_inverse(sliding):
    operator = Convolution(drawn(3, 2, 3, 3, key="weight"), (2, 7, 7), sliding)
    x, dz = drawn(2, 7, 7, key="x"), drawn(*operator.output_shape, key="dz")
    matrix = dense_matrix(operator, dz)
    solution = solve(Constraints(operator, dz, operator.weight_gradient(x, dz), operator.forward(x)))
    assert solution.residual < 1e-13
    assert torch.allclose(solution.x.flatten(), torch.linalg.pinv(matrix) @ (matrix @ x.flatten()), atol=1e-9)


def test_a_dense_layers_maps():
    operator, x, dz = Dense(drawn(3, 5, key="weight")), drawn(5, key="x"), drawn(3, key="dz")
    matrix = dense_matrix(operator, dz)
    assert torch.allclose(matrix @ x, torch.cat([operator.weight @ x, torch.outer(dz, x).flatten()]))
    found = solve(Constraints(operator, dz, operator.weight_gradient(x, dz)))
    assert torch.allclose(found.x, x)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (
            Layer("norm", "batch_norm", "w", "b", (INPUT,), (3, 8, 8), (3, 8, 8)),
            "layer norm is a batch_norm on 3 axes",
        ),
        (Layer("rows", "linear", "w", "b", (INPUT,), (4, 8), (4, 3)), "layer rows is a linear on 2 axes"),
        (
            Layer("same", "conv2d", "w", None, (INPUT,), (3, 8, 8), (3, 8, 8)),
            "layer same: padding must be given as two numbers",
        ),
    ],
)
def test_layers_of_other_kinds_are_refused_by_name(layer, complaint):
    with pytest.raises(ValueError, match=complaint):
        operator_of(layer, drawn(3, 3, 3, 3, key="weight"))
