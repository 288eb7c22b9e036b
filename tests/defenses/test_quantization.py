"""Quantization and the sign: few values, near or right in the mean, in few bytes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metaleak.defenses import Costed, Quantization, RandomSource, Sign


def source(seed=0):
    return RandomSource.of(seed)


def test_three_bits_are_seven_levels():
    value = torch.tensor([-3.0, -2.6, -0.4, 0.0, 0.6, 1.4, 3.0], dtype=torch.float64)
    sent = Quantization(bits=3)({"w": value}, source())["w"]
    assert sent.tolist() == [-3.0, -3.0, 0.0, 0.0, 1.0, 1.0, 3.0]


@given(
    entries=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
    bits=st.integers(2, 16),
    stochastic=st.booleans(),
)
def test_every_entry_goes_to_a_level_beside_it(entries, bits, stochastic):
    value = torch.tensor(entries, dtype=torch.float64)
    sent = Quantization(bits=bits, stochastic=stochastic)({"w": value}, source())["w"]
    largest, levels = value.abs().max().item(), 2 ** (bits - 1) - 1
    if largest == 0:
        assert torch.equal(sent, value)
        return
    spacing = largest / levels
    assert (sent - value).abs().max().item() <= spacing * (1 if stochastic else 0.5) * (1 + 1e-9)
    steps = sent / largest * levels
    assert (steps - steps.round()).abs().max().item() < 1e-9
    assert sent.abs().max().item() <= largest * (1 + 1e-12)
    assert not stochastic or torch.equal(sent[value == 0], value[value == 0]), "zero is a level"


def test_to_the_nearest_twice_is_once():
    value = torch.randn(1000, generator=source().generator, dtype=torch.float64)
    quantization = Quantization(bits=5)
    once = quantization({"w": value}, source())
    torch.testing.assert_close(quantization(once, source()), once, rtol=1e-14, atol=0)


def test_at_random_the_mean_is_the_entry():
    value = torch.tensor([1.0, 0.3, -0.77, 0.0], dtype=torch.float64).repeat(50_000, 1)
    sent = Quantization(bits=2, stochastic=True)({"w": value}, source())["w"]
    assert sent.unique().tolist() == [-1.0, 0.0, 1.0]
    assert sent.mean(dim=0).tolist() == pytest.approx([1.0, 0.3, -0.77, 0.0], abs=0.01)
    nearest = Quantization(bits=2)({"w": value}, source())["w"]
    assert nearest.mean(dim=0).tolist() == [1.0, 0.0, -1.0, 0.0]


def test_each_tensor_has_its_own_levels():
    tensors = {"large": torch.tensor([100.0, 0.0]), "small": torch.tensor([0.001, 0.0])}
    sent = Quantization(bits=2)(tensors, source())
    assert [sent[name][0].item() for name in tensors] == [value[0].item() for value in tensors.values()]


def test_the_sign_is_of_one_size():
    tensors = {"a": torch.tensor([1.0, -2.0, 0.0, 5.0]), "b": torch.tensor([[-0.5]])}
    sent = Sign()(tensors, source())
    assert sent["a"].tolist() == [2.0, -2.0, 2.0, 2.0]
    assert sent["b"].tolist() == [[-0.5]]
    assert not Sign()({"w": torch.zeros(3)}, source())["w"].any()


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
@pytest.mark.parametrize("defense", [Quantization(bits=4), Quantization(bits=4, stochastic=True), Sign()])
def test_an_entry_that_is_not_finite_is_not_made_finite(defense, wrong):
    """The server refuses such a gradient, and must be able to."""
    sent = defense({"w": torch.tensor([1.0, wrong]), "b": torch.tensor([1.0])}, source())
    assert not sent["w"].isfinite().all()
    assert sent["b"].isfinite().all()


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_a_sender_can_really_do_with_so_many_bytes(bits):
    """The levels are written as bits, with one float32 a tensor, and read again: the same gradient."""
    quantization = Quantization(bits=bits)
    tensors = {name: torch.randn(size, generator=source().generator) for name, size in (("w", 77), ("b", 5))}
    sent = quantization(tensors, source())
    levels, written = quantization.levels, ""
    for value in sent.values():
        steps = (value.double() / value.double().abs().max() * levels).round().int() + levels
        written += "".join(format(step, f"0{bits}b") for step in steps.tolist())
    scales = b"".join(value.abs().max().numpy().tobytes() for value in sent.values())
    codes = np.array([int(written[i : i + bits], 2) for i in range(0, len(written), bits)]) - levels
    read = [
        part / levels * np.float64(scale)
        for part, scale in zip(np.split(codes, [77]), np.frombuffer(scales, np.float32), strict=True)
    ]
    for value, again in zip(sent.values(), read, strict=True):
        np.testing.assert_array_equal(value.numpy(), again.astype(np.float32))
    assert isinstance(quantization, Costed)
    assert quantization.bytes_sent({"w": (77,), "b": (5,)}) == -(-len(written) // 8) + len(scales)


def test_one_bit_an_entry_carries_the_sign():
    tensors = {"w": torch.randn(77, generator=source().generator), "b": torch.zeros(4)}
    sent = Sign()(tensors, source())
    bits = np.packbits(np.concatenate([(value < 0).numpy() for value in tensors.values()]))
    scales = np.array([value.abs().max() for value in sent.values()], np.float32)
    signs = np.split(np.where(np.unpackbits(bits, count=81), np.float32(-1), np.float32(1)), [77])
    for value, sign, scale in zip(sent.values(), signs, scales, strict=True):
        np.testing.assert_array_equal(value.numpy(), sign * scale)
    assert Sign().bytes_sent({"w": (77,), "b": (4,)}) == len(bits) + scales.nbytes


@pytest.mark.parametrize("wrong", [{}, {"bits": 1}, {"bits": 17}, {"bits": 4, "place": "query"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Quantization(**wrong)
