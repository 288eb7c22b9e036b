"""Which rows are finite, whatever a sum of their entries would be."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaleak.clients.wire.finite import finite_rows


@given(
    arrays.arrays(
        st.sampled_from([np.dtype("f2"), np.dtype("f4"), np.dtype(">f4"), np.dtype("f8"), np.dtype("c8")]),
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)),
    )
)
def test_a_row_is_finite_if_all_its_entries_are(values):
    expected = np.isfinite(values).reshape(len(values), -1).all(axis=1) if values.size else np.ones(len(values), bool)
    np.testing.assert_array_equal(finite_rows({"w": values}, len(values)), expected)


@pytest.mark.parametrize("spoiled", [np.inf, -np.inf, np.nan])
def test_finite_rows_whose_sum_overflows_are_told_from_infinite_ones(spoiled):
    values = np.full((4, 1000), np.finfo("f4").max, "f4")
    values[1, 7] = spoiled
    values[2] = 1.0
    values[3, :2] = np.inf, -np.inf
    assert finite_rows({"w": values, "n": np.ones((4, 2), "i8")}, 4).tolist() == [True, False, True, False]
