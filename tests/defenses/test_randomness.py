"""One key, one stream: wide enough that nobody can try them all, and none is met twice in a run."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import kstest

from metaleak.defenses import GaussianMechanism, RandomSource


def test_a_key_gives_the_same_numbers_in_the_same_order():
    one, other = RandomSource.of(3, "noise"), RandomSource.of(3, "noise")
    assert torch.equal(one.normal((2, 3)), other.normal((2, 3)))
    assert torch.equal(torch.rand(5, generator=one.generator), torch.rand(5, generator=other.generator))
    assert not torch.equal(one.normal((2, 3)), RandomSource.of(3, "noise").normal((2, 3))), "none comes twice"


def test_every_process_and_machine_draws_the_same():
    source = RandomSource.of(3, "noise")
    assert source.normal((3,)).tolist() == pytest.approx(
        [0.24829534249562576, 1.188985723724953, -0.6359796369661804]
    )
    assert torch.randint(2**31, (3,), generator=source.generator).tolist() == [284788480, 2147335425, 1326750762]


@pytest.mark.parametrize("place", range(32))
def test_keys_that_differ_in_one_byte_alone_give_other_numbers(place):
    """Wherever it is: torch's own seeding of a CPU generator looks at four of them."""
    key = bytes(range(32))
    other = key[:place] + bytes([key[place] ^ 1]) + key[place + 1 :]
    assert not torch.equal(RandomSource(key).normal((4,)), RandomSource(other).normal((4,)))
    first, second = (torch.rand(4, generator=RandomSource(one).generator) for one in (key, other))
    assert not torch.equal(first, second)


def test_torch_itself_keeps_32_bits_of_a_seed():
    """What `RandomSource` is for; once torch keeps all of it, this fails and the expansion may go."""
    drawn = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7 + 2**32)]
    assert torch.equal(*drawn)


def test_no_two_of_a_million_keys_of_a_run_are_the_same():
    """1 000 learners in 1 000 rounds; of seeds of 32 bits about 116 pairs would be."""
    keys = {
        RandomSource.of(0, round, learner, "defense", 0, 0).key for round in range(1000) for learner in range(1000)
    }
    assert len(keys) == 10**6


def test_no_two_generators_begin_with_the_same_numbers():
    firsts = {
        tuple(torch.randint(2**31, (3,), generator=RandomSource.of(0, learner).generator).tolist())
        for learner in range(20_000)
    }
    assert len(firsts) == 20_000


def test_the_generator_is_uniform_and_the_noise_normal():
    source = RandomSource.of("law")
    uniform = torch.rand(100_000, generator=source.generator, dtype=torch.float64)
    normal = source.normal((100_001,))
    assert normal.dtype == torch.float64
    assert kstest(uniform.numpy(), "uniform").pvalue > 0.01
    assert kstest(normal.numpy(), "norm").pvalue > 0.01
    # Box and Muller make two of one pair of uniform numbers: they must not know of one another.
    halves = normal[:-1].reshape(2, -1).numpy()
    for power in (1, 2):
        assert abs(np.corrcoef(halves**power)[0, 1]) < 0.02
    assert normal[:50_000].mean().abs() < 0.02
    assert abs(float(normal.var()) - 1) < 0.02


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (3, 5)])
def test_any_shape_can_be_drawn(shape):
    assert RandomSource.of(1).normal(shape).shape == shape


PART = 2**16
"""Numbers that are made at a time."""


def numbers_of(stream: bytes, count: int) -> np.ndarray:
    """Return the normal numbers of a key stream: of each part, lengths and angles, then cosines and sines."""
    made = []
    for start in range(0, count, PART):
        pairs = (min(PART, count - start) + 1) // 2
        words = np.frombuffer(stream, "<u8", 2 * pairs, 8 * start)
        # 62 bits make a number above 0 and below 1, all 64 an angle.
        uniform = ((words[:pairs] >> 1 & (2**62 - 1)) + 0.5) * 2.0**-62
        length, angle = np.sqrt(-2 * np.log1p(-uniform)), 2 * np.pi * words[pairs:].astype(np.float64) * 2.0**-64
        made += [length * np.cos(angle), length * np.sin(angle)]
    return np.concatenate(made)[:count]


@pytest.mark.parametrize("count", [5, PART, PART + 1, 140_001])
def test_numbers_come_from_one_stream_in_however_many_parts_they_are_made(count):
    """The next call goes on where the last one ended, after a pair of numbers."""
    source, again = RandomSource.of("parts"), RandomSource.of("parts")
    key = hashlib.blake2b(b"normal", key=source.key, digest_size=32).digest()
    # GCM counts blocks from 2 on, after 12 bytes of nonce.
    counter = bytes(15) + b"\2"
    stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(8 * count + 24))
    expected = numbers_of(stream, count)
    np.testing.assert_allclose(source.normal((count,)).numpy(), expected, rtol=1e-9, atol=1e-12)
    after = numbers_of(stream[8 * (count + count % 2) :], 1)
    assert source.normal((1,)).item() == pytest.approx(after.item())
    # What is made noisy gets the same numbers, and is rounded once.
    values = torch.linspace(-1, 1, count)
    wide = 0.5 * values.double() + 3.0 * torch.from_numpy(expected)
    torch.testing.assert_close(again.noisy(values, 3.0, 0.5), wide.float(), rtol=1e-6, atol=1e-7)


def test_tensors_get_independent_noise_of_their_own_shapes_and_types():
    shapes = {"body": (300, 100), "bias": (50,), "head": (4, 50), "scale": (7,)}
    tensors = {name: torch.ones(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["scale"] = tensors["scale"].float()
    made = RandomSource.of("together").noisy_tensors(tensors, 2.0, 3.0)
    assert [(name, value.shape, value.dtype) for name, value in made.items()] == [
        (name, value.shape, value.dtype) for name, value in tensors.items()
    ]
    all_noise = torch.cat([value.flatten() for value in made.values()]) / 2 - 1.5
    assert len(all_noise.unique()) == len(all_noise)
    assert kstest(all_noise.numpy(), "norm").pvalue > 0.01


def test_noise_inside_a_derivative_is_the_same_and_a_constant():
    values = torch.linspace(-1, 1, 5)

    def energy(values):
        return RandomSource.of(0).noisy(values, 2.0, 3.0).square().sum() + values.sum()

    slope, found = torch.func.grad_and_value(energy)(values)
    assert torch.equal(slope, torch.ones(5))
    assert found.item() == pytest.approx(energy(values).item())


def test_threads_do_not_disturb_one_another():
    def drawn(number):
        return RandomSource.of(number).normal((100_000,))

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(one, drawn(number)) for number, one in enumerate(pool.map(drawn, range(8))))


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_a_key_of_another_length_is_refused(key):
    with pytest.raises(ValueError, match=f"^a key has 32 bytes, got {len(key)}$"):
        RandomSource(key)


SPACE = 2**12
"""Seeds that the adversary can try in a test; of 32 bits all can be tried within minutes."""


def found_by_search(sent: torch.Tensor, clip: float, deviation: float) -> list[int]:
    """Return the seeds whose noise leaves a vector of norm `clip` when it is taken off what was sent."""
    found = []
    for seed in range(SPACE):
        drawn = torch.randn(sent.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if float((sent.double() - deviation * drawn).norm()) < 1.01 * clip:
            found.append(seed)
    return found


def test_the_noise_of_the_gaussian_mechanism_is_not_found_by_trying_seeds():
    """The adversary of the record knows clip and deviation: the right seed leaves the clipped gradient."""
    mechanism = GaussianMechanism(clip=1, epsilon=1, releases=1)
    gradient = {"w": torch.ones(300)}
    seeds = [0, 1, 777, 2048, SPACE - 1]
    for seed in seeds:
        narrow = torch.Generator().manual_seed(seed)
        noise = mechanism.standard_deviation * torch.randn(300, generator=narrow, dtype=torch.float64)
        assert found_by_search(gradient["w"] / 300**0.5 + noise, 1, mechanism.standard_deviation) == [seed]
    sent = mechanism(gradient, RandomSource.of(0, 1, 7, "defense", 0, 0))["w"]
    assert not found_by_search(sent, 1, mechanism.standard_deviation)
