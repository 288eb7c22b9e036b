"""Noise: the right size, the right law, the right key."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kstest

from metaleak.defenses import Defense, Noise, RandomSource

PLACES = ["support", "query", "inner", "shared"]


def source(seed=0):
    return RandomSource.of(seed)


def test_it_is_a_defense():
    assert isinstance(Noise(), Defense)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("place", ["support", "query"])
def test_image_noise_has_the_scale_as_its_standard_deviation(law, place):
    images = torch.full((50, 1, 28, 28), 0.5)
    noise = Noise(place=place, law=law, scale=0.3)({"inputs": images}, source())["inputs"] - images
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("place", ["inner", "shared"])
def test_gradient_noise_is_relative_to_the_gradient_as_a_whole(law, place):
    gradient = {"large": torch.full((200, 100), 3.0), "small": torch.full((200, 100), 4.0)}
    defended = Noise(place=place, law=law, scale=0.5)(gradient, source())
    whole = (0.5 * (9.0 + 16.0)) ** 0.5
    for name, value in gradient.items():
        assert (defended[name] - value).std().item() == pytest.approx(0.5 * whole, rel=0.03)


@pytest.mark.parametrize(("law", "distribution"), [("gaussian", "norm"), ("laplace", "laplace")])
def test_the_law_is_the_one_that_is_named(law, distribution):
    noise = Noise(place="query", law=law, scale=1.0)({"inputs": torch.zeros(20_000)}, source())["inputs"]
    scale = 1.0 if law == "gaussian" else 1 / np.sqrt(2)
    assert kstest(noise.numpy(), distribution, args=(0, scale)).pvalue > 0.01
    other = "laplace" if distribution == "norm" else "norm"
    assert kstest(noise.numpy(), other, args=(0, 1 / np.sqrt(2) if other == "laplace" else 1)).pvalue < 1e-6


@given(place=st.sampled_from(PLACES), law=st.sampled_from(["gaussian", "laplace"]), seed=st.integers(0, 2**31))
def test_names_shapes_and_types_stay_and_the_key_decides(place, law, seed):
    tensors = {"a": torch.ones(3, 2, dtype=torch.float64), "b": torch.ones(4)}
    defense = Noise(place=place, law=law, scale=1.0)
    once, again = defense(tensors, source(seed)), defense(tensors, source(seed))
    assert list(once) == list(tensors)
    for name, value in tensors.items():
        assert (once[name].shape, once[name].dtype) == (value.shape, value.dtype)
        assert torch.equal(once[name], again[name])


@pytest.mark.parametrize("place", PLACES)
def test_scale_zero_changes_nothing_and_a_zero_gradient_stays_zero(place):
    tensors = {"w": torch.randn(5, generator=source().generator)}
    assert torch.equal(Noise(place=place, scale=0)(tensors, source())["w"], tensors["w"])
    if place in ("inner", "shared"):
        assert not Noise(place=place, scale=2.0)({"w": torch.zeros(5)}, source())["w"].any()


@pytest.mark.parametrize("wrong", [{"scale": -1}, {"place": "outer"}, {"law": "uniform"}, {"sigma": 1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Noise(**wrong)
