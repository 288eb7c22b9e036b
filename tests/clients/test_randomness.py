"""Keyed random numbers depend on their key and on nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from metaleak.clients.randomness import derived_seed, keyed_generator

keys = st.lists(st.integers() | st.text(max_size=5), max_size=5).map(tuple)


@given(keys, keys)
def test_different_keys_give_different_seeds(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert (derived_seed(*one) == derived_seed(*other)) == (one == other)


@given(keys)
def test_a_seed_has_128_bits(key: tuple[int | str, ...]) -> None:
    assert 0 <= derived_seed(*key) < 2**128
    keyed_generator(*key)


def test_neither_the_order_of_drawing_nor_the_global_generator_matters() -> None:
    first = torch.rand(3, generator=keyed_generator(0, 1, 2, "noise"))
    torch.rand(100)
    torch.rand(7, generator=keyed_generator(0, 1, 3, "noise"))
    assert torch.equal(first, torch.rand(3, generator=keyed_generator(0, 1, 2, "noise")))
    assert not torch.equal(first, torch.rand(3, generator=keyed_generator(0, 2, 1, "noise")))


def test_parts_keep_their_type_and_their_border() -> None:
    assert len({derived_seed("a", "bc"), derived_seed("ab", "c"), derived_seed("abc")}) == 3
    assert derived_seed(1) != derived_seed("1")


def test_every_process_and_machine_draws_the_same() -> None:
    # Python's own hash of a string differs from process to process.
    assert derived_seed(3, "support", 5) == 33660285598959876260653432418441373376
