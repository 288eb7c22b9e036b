"""Reconstructions are optimally paired with the true examples, and compared with them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from metaleak.attacks.evaluation.similarity import LARGEST_PSNR, similarity

DIGITS = load_digits().images[:12].reshape(3, 4, 1, 8, 8) / 16


def named(measures):
    return {measure.name: measure for measure in measures}


def test_the_order_within_a_learner_does_not_matter():
    order = np.array([[2, 0, 3, 1], [1, 0, 3, 2], [3, 2, 1, 0]])
    made = np.take_along_axis(DIGITS, order[:, :, None, None, None], axis=1)
    pairing, measures = similarity("image", made, DIGITS)
    assert (np.take_along_axis(order, pairing.partner, axis=1) == np.arange(4)).all()
    assert named(measures)["PSNR"].value == LARGEST_PSNR
    assert named(measures)["mean squared error"].value == 0


def test_psnr_has_the_value_of_its_definition():
    noise = np.random.default_rng(0).normal(0, 0.1, DIGITS.shape)
    pairing, measures = similarity("image", DIGITS + noise, DIGITS)
    squared = (noise**2).reshape(3, 4, -1).mean(axis=-1)
    assert pairing.alike == pytest.approx(10 * np.log10(1 / squared))
    assert [measure.headline for measure in measures] == [True, False, False]
    assert [measure.higher_leaks for measure in measures] == [True, False, True]


def test_pairs_have_the_least_squared_error_of_all_orders():
    made = np.random.default_rng(1).random((1, 4, 1, 8, 8))
    pairing, measures = similarity("image", made, DIGITS[:1])
    errors = ((made[0][:, None] - DIGITS[0][None]) ** 2).reshape(4, 4, -1).mean(axis=-1)
    least = min(errors[list(order), range(4)].mean() for order in itertools.permutations(range(4)))
    assert named(measures)["mean squared error"].value == pytest.approx(least)
    assert sorted(pairing.partner[0]) == [0, 1, 2, 3]


def test_a_missing_reconstruction_counts_as_gray_or_as_no_token_recovered():
    pairing, _ = similarity("image", DIGITS[:, :1], DIGITS)
    assert (pairing.partner[:, 0] == 0).all()
    assert (pairing.partner[:, 1:] == -1).all()
    gray = -10 * np.log10(((DIGITS[:, 1:] - 0.5) ** 2).reshape(3, 3, -1).mean(axis=-1))
    assert pairing.alike[:, 1:] == pytest.approx(gray)
    tokens = np.arange(24).reshape(2, 3, 4)
    pairing, measures = similarity("tokens", tokens[:, :2], tokens)
    assert pairing.alike.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert named(measures)["sequences recovered"].value == pytest.approx(2 / 3)


def test_tokens_count_only_at_the_same_position():
    held = np.array([[[1, 2, 3, 4], [5, 6, 7, 8]]])
    made = np.array([[[5, 6, 8, 7], [4, 2, 3, 1]]])
    pairing, measures = similarity("tokens", made, held)
    assert (pairing.partner.tolist(), pairing.alike.tolist()) == ([[1, 0]], [[0.5, 0.5]])
    assert {name: measure.value for name, measure in named(measures).items()} == {
        "tokens recovered": 0.5,
        "sequences recovered": 0.0,
    }


def test_intervals_resample_learners_where_there_are_several():
    alike = np.array([[[0, 0]], [[9, 9]], [[0, 9]]])
    _, measures = similarity("tokens", alike, np.zeros((3, 1, 2)))
    several = named(measures)["tokens recovered"]
    assert (several.low, several.value, several.high) == (0, 0.5, 1)
    _, measures = similarity("tokens", alike.reshape(1, 3, 2), np.zeros((1, 3, 2)))
    assert named(measures)["tokens recovered"].model_dump() == several.model_dump()


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5))
def test_more_reconstructions_never_recover_less(seed, made, held):
    random = np.random.default_rng(seed)
    ours, true = random.integers(0, 3, (2, made, 4)), random.integers(0, 3, (2, held, 4))
    more = np.concatenate([ours, random.integers(0, 3, (2, 1, 4))], axis=1)
    few, many = (named(similarity("tokens", one, true, resamples=2)[1])["tokens recovered"] for one in (ours, more))
    assert few.value <= many.value + 1e-12
    assert 0 <= few.low <= few.high <= 1


@pytest.mark.parametrize(
    ("modality", "made", "held", "message"),
    [
        ("sound", (1, 1, 2), (1, 1, 2), "modality: must be image or tokens, got 'sound'"),
        ("image", (1, 2, 1, 8, 8), (2, 2, 1, 8, 8), "do not fit"),
        ("image", (1, 2, 64), (1, 2, 64), "images must be \\(learners, images, channels, height, width\\)"),
        ("tokens", (1, 2, 3), (1, 2, 4), "do not fit"),
        ("tokens", (2, 3), (2, 3), "do not fit"),
    ],
)
def test_examples_that_do_not_fit_are_refused(modality, made, held, message):
    with pytest.raises(ValueError, match=message):
        similarity(modality, np.zeros(made), np.zeros(held))


def test_reconstructions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        similarity("image", np.full((1, 1, 1, 2, 2), np.nan), np.zeros((1, 1, 1, 2, 2)))
