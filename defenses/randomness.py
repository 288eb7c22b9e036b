"""Random numbers by key: one key of 256 bits, one stream, whatever was drawn before or elsewhere.

torch's own way from a number to a generator keeps 32 bits of it, few enough to try them all, and so few that two of
100 000 streams of one run would be the same. Here the whole state of a generator is expanded from the key.
"""

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

KeyPart = int | str | bytes

_KEY_BYTES = 32
_STATE_WORDS = 624

_PAIRS_AT_ONCE = 1 << 15
"""Pairs of normal numbers that are made at a time: what they are made of, 1 MB, stays in the cache of a core."""

_SMALL = 1 << 15
"""Entries of a tensor to which noise is added in less time than the calls take."""

_ZEROS = memoryview(bytes(16 * _PAIRS_AT_ONCE))
"""What the key stream is added to, to be read by itself."""

_NEGATIVE_ODD = np.uint64((1 << 63) + 1)

_STATE_BEGINS = 24
"""Bytes of torch's serialized CPU generator (`at::mt19937`) before its 624 words, each of which takes 8 bytes."""


class RandomSource:
    """The random numbers that belong to one key; two sources of one key give the same numbers in the same order.

    `generator` serves whatever needs no secrecy: its period is long and its key wide, but who sees enough of what a
    Mersenne Twister draws can tell the rest. Noise that carries a privacy guarantee comes from `normal`.
    """

    def __init__(self, key: bytes) -> None:
        """`key` has 32 bytes; raises `ValueError` for any other length."""
        if len(key) != _KEY_BYTES:
            raise ValueError(f"a key has {_KEY_BYTES} bytes, got {len(key)}")
        self.key = key

    @classmethod
    def of(cls, *parts: KeyPart) -> Self:
        """Return the source whose key is the hash (BLAKE2b, 256 bits) of all `parts`, their types and borders."""
        return cls(hashlib.blake2b(repr(parts).encode(), digest_size=_KEY_BYTES).digest())

    @cached_property
    def generator(self) -> torch.Generator:
        """A CPU generator whose whole state, 624 words of 32 bits, is expanded from the key by SHAKE-256."""
        words = np.frombuffer(hashlib.shake_256(b"generator" + self.key).digest(4 * _STATE_WORDS), "<u4")
        made = torch.Generator()
        # A defense may draw inside a derivative, where tensors have no storage of their own; torch sets the states of
        # its other generators in the same way.
        with torch._C._DisableFuncTorch():
            # Filled by NumPy, which takes a third of the time.
            state = _fresh_state().copy()
            state[_STATE_BEGINS : _STATE_BEGINS + 8 * _STATE_WORDS].view("<u8")[:] = words
            made.set_state(torch.from_numpy(state))
        return made

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return independent standard normal numbers of this shape, float64 on the CPU; each call gives new ones.

        They are made of the key stream of AES-256-GCM (NIST SP 800-38D) by the transform of Box and Muller (1958):
        nobody who does not hold the key can tell the stream from true randomness, whatever part of it is known. At
        most 9.3 in size, which about one of 10^20 should exceed.

        Example:
            >>> RandomSource.of("secret", 1).normal((2,)).shape
            torch.Size([2])
        """
        with torch._C._DisableFuncTorch():
            return self.noisy(torch.zeros(tuple(shape), dtype=torch.float64, device="cpu"), 1.0)

    def noisy(self, values: Tensor, deviation: float, scale: float = 1.0, over: bool = False) -> Tensor:
        """Return `scale` times `values` plus `deviation` times `normal` numbers, of the type and place of `values`.

        They may be written over `values` if `over` is set, which saves the time to get memory.

        The sum is taken in float64 and rounded once. Noise that is itself rounded to float32 would give its values
        away: which of two numbers it was added to shows in the lowest bits of the sum.
        """
        if torch._C._functorch.is_functorch_wrapped_tensor(values):
            # Inside a derivative, where nothing from elsewhere may be written to.
            return (scale * values.detach().double() + deviation * self.normal(values.shape)).to(values.dtype)
        flat = values.detach().reshape(-1)
        made = flat if over else torch.empty_like(flat)
        with torch._C._DisableFuncTorch():
            for start in range(0, flat.numel(), 2 * _PAIRS_AT_ONCE):
                some = flat[start : start + 2 * _PAIRS_AT_ONCE]
                memory = _MEMORY.of(len(some))
                self._draw(memory, deviation)
                # Widened first: torch takes half as long again to add numbers of two types.
                wide = memory.wide.copy_(some)
                made[start : start + 2 * _PAIRS_AT_ONCE] = torch.add(memory.noise, wide, alpha=scale, out=wide)
        return made.reshape(values.shape)

    def noisy_tensors(
        self, tensors: Mapping[str, Tensor], deviation: float, scale: float = 1.0, over: bool = False
    ) -> dict[str, Tensor]:
        """Return `noisy` of each of `tensors`; small ones of the same type and device are computed together."""
        small = [name for name, value in tensors.items() if value.numel() <= _SMALL]
        if small:
            kind = tensors[small[0]].dtype, tensors[small[0]].device
            small = [name for name in small if (tensors[name].dtype, tensors[name].device) == kind]
        made: dict[str, Tensor] = {}
        if len(small) > 1:
            together = torch.cat([tensors[name].detach().reshape(-1) for name in small])
            parts = torch.split(
                self.noisy(together, deviation, scale, over=True), [tensors[name].numel() for name in small]
            )
            made = {name: part.view(tensors[name].shape) for name, part in zip(small, parts, strict=True)}
        return {
            name: made[name] if name in made else self.noisy(value, deviation, scale, over)
            for name, value in tensors.items()
        }

    def _draw(self, memory: "_Memory", deviation: float) -> None:
        """Write normal numbers of this standard deviation to `memory.noise`."""
        self._key_stream.update_into(memory.zeros, memory.stream)
        # A number that is odd is not 0; one that is negative can be read as signed, which processors convert several
        # times as fast.
        np.bitwise_or(memory.words[0], _NEGATIVE_ODD, out=memory.words[0])
        np.multiply(memory.signed[0], -(2.0**-63), out=memory.numbers[0])
        np.multiply(memory.signed[1], math.pi * 2.0**-63, out=memory.numbers[1])
        memory.length.log_().mul_(-2.0).sqrt_().mul_(deviation)
        torch.cos(memory.angle, out=memory.cosine)
        torch.sin(memory.angle, out=memory.sine)
        memory.pairs.mul_(memory.length)

    @cached_property
    def _key_stream(self) -> CipherContext:
        """The key stream, from where it was read last."""
        key = hashlib.blake2b(b"normal", key=self.key, digest_size=_KEY_BYTES).digest()
        # A key serves one stream, so that its nonce may be 0.
        return Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()


class _Memory:
    """Memory in which `count` normal numbers are made: words, numbers of them, lengths and angles, and the result.

    Cosines and sines are written over the words, and the sums of values and noise over lengths and angles.
    """

    def __init__(self, numbers: Tensor, words: Tensor, count: int) -> None:
        pairs = -(-count // 2)
        both, self.pairs = (part[: 2 * pairs].view(2, pairs) for part in (numbers, words))
        (self.length, self.angle), (self.cosine, self.sine) = both, self.pairs
        self.noise, self.wide = words[:count], numbers[:count]
        self.numbers: npt.NDArray[np.float64] = both.numpy()
        # Lengths come from the first half of the words, angles from the second.
        self.words: npt.NDArray[np.uint64] = self.pairs.numpy().view("<u8")
        self.signed: npt.NDArray[np.int64] = self.words.view("<i8")
        # The cipher asks for room for a block more.
        self.stream = words[: 2 * pairs + 2].numpy().view(np.uint8).data
        self.zeros = _ZEROS[: 16 * pairs]


class _KeptMemory(threading.local):
    """The memory of one thread, kept because fresh memory takes longer to get than to fill."""

    def __init__(self) -> None:
        # Also where the first numbers are drawn inside a derivative, or in torch's inference mode.
        with torch._C._DisableFuncTorch(), torch.inference_mode(False):
            numbers, words = torch.empty((2, 2 * _PAIRS_AT_ONCE + 2), dtype=torch.float64, device="cpu")
        # The tensors of a network have few sizes, and views take longer to make than a thousand numbers.
        self.of = lru_cache(maxsize=64)(partial(_Memory, numbers, words))


_MEMORY = _KeptMemory()


@lru_cache(maxsize=1)
def _fresh_state() -> npt.NDArray[np.uint8]:
    """Return a fresh generator's state; raises `RuntimeError` where torch keeps another kind of generator."""
    state: npt.NDArray[np.uint8] = torch.Generator().manual_seed(0).get_state().numpy()
    if len(state) < _STATE_BEGINS + 8 * _STATE_WORDS:
        raise RuntimeError(f"torch {torch.__version__} keeps another generator than a Mersenne Twister")
    return state
