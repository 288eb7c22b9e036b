"""The examples in the docstrings of defenses run and show the values that they state."""

import doctest
from importlib import import_module

import pytest

DEFENSES = (
    "accounting",
    "adaptive_clip",
    "cost",
    "distributed_gaussian",
    "distributed_record_level",
    "gaussian_mechanism",
    "noise",
    "pruning",
    "quantization",
    "randomness",
    "record_level",
    "secure_aggregation",
    "selection",
)


@pytest.mark.parametrize("name", DEFENSES)
def test_examples_have_the_stated_values(name):
    found = doctest.testmod(import_module(f"metaleak.defenses.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
