"""The examples in the docstrings of measures run and show the values that they state."""

import doctest
from importlib import import_module

import pytest

MEASURES = ("empirical_epsilon", "membership", "roc", "rouge", "similarity", "ssim")


@pytest.mark.parametrize("name", MEASURES)
def test_examples_have_the_stated_values(name):
    found = doctest.testmod(import_module(f"metaleak.attacks.evaluation.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
