"""Random numbers by key: one key of 256 bits, one stream, whatever was drawn before or elsewhere.

torch's own way from a number to a generator keeps 32 bits of it, few enough to try them all, and so few that two of
100 000 streams of one run would be the same. Here the whole state of a generator is expanded from the key.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from torch import Tensor

KeyPart = int | str | bytes

_KEY_BYTES = 32
_STATE_WORDS = 624
_CIPHER_BLOCK = 64
"""Bytes of the key stream for one count of the cipher's counter."""

_PAIRS_AT_ONCE = 1 << 14
"""Pairs of normal numbers that are made at a time."""

_ZEROS = memoryview(bytes(8 * _PAIRS_AT_ONCE))
"""What the key stream is added to, to be read by itself."""

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
        self._drawn = 0

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

        They are made of the ChaCha20 key stream (RFC 8439) by the transform of Box and Muller (1958): nobody who
        does not hold the key can tell the stream from true randomness, whatever part of it is known. At most 8.6 in
        size, which about one of 10^17 should exceed.

        Example:
            >>> RandomSource.of("secret", 1).normal((2,)).shape
            torch.Size([2])
        """
        return self.noisy(torch.zeros(tuple(shape), dtype=torch.float64, device="cpu"), 1.0)

    def noisy(self, values: Tensor, deviation: float, scale: float = 1.0) -> Tensor:
        """Return `scale` times `values` plus `deviation` times `normal` numbers, of the type and place of `values`.

        The sum is taken in float64 and rounded once. Noise that is itself rounded to float32 would give its values
        away: which of two numbers it was added to shows in the lowest bits of the sum.
        """
        flat = values.detach().reshape(-1)
        made = torch.empty_like(flat)
        count, device = flat.numel(), flat.device
        pairs = -(-count // 2)
        lengths = self._key_stream(self._drawn)
        # One stream does where all lengths come before the angles.
        angles = lengths if pairs <= _PAIRS_AT_ONCE else self._key_stream(self._drawn + 8 * pairs)
        self._drawn += 16 * pairs
        # In parts, since a gradient has as many entries as the network, and memory is what takes the time.
        for start in range(0, pairs, _PAIRS_AT_ONCE):
            some = min(_PAIRS_AT_ONCE, pairs - start)
            length = _uniforms(lengths, some, 2.0**-53).log_().mul_(-2.0).sqrt_().mul_(deviation)
            angle = _uniforms(angles, some, 2.0 * math.pi * 2.0**-53)
            for begin, turned in ((start, torch.cos), (pairs + start, torch.sin)):
                place = slice(begin, min(begin + some, count))
                noise = turned(angle).mul_(length)[: count - begin].to(device)
                # Widened first: torch takes half as long again to add numbers of two types.
                made[place] = noise.add_(flat[place].double(), alpha=scale)
        return made.reshape(values.shape)

    def _key_stream(self, begin: int) -> CipherContext:
        """Return the key stream from byte `begin` on."""
        block, rest = divmod(begin, _CIPHER_BLOCK)
        counter = block.to_bytes(8, "little") + bytes(8)
        stream = Cipher(algorithms.ChaCha20(self._cipher_key, counter), mode=None).encryptor()
        stream.update(bytes(rest))
        return stream

    @cached_property
    def _cipher_key(self) -> bytes:
        return hashlib.blake2b(b"normal", key=self.key, digest_size=_KEY_BYTES).digest()


def _uniforms(stream: CipherContext, count: int, scale: float) -> Tensor:
    """Return the next `count` numbers k + 1/2 with k of 53 bits, times `scale`, float64."""
    bits = np.empty(count, np.uint64)
    stream.update_into(_ZEROS[: 8 * count], bits.view(np.uint8).data)
    words = bits.view("<u8")
    words >>= 11
    # Signed: processors convert such integers several times as fast.
    made = words.view("<i8").astype(np.float64)
    made += 0.5
    made *= scale
    return torch.from_numpy(made)


@lru_cache(maxsize=1)
def _fresh_state() -> npt.NDArray[np.uint8]:
    """Return a fresh generator's state; raises `RuntimeError` where torch keeps another kind of generator."""
    state: npt.NDArray[np.uint8] = torch.Generator().manual_seed(0).get_state().numpy()
    if len(state) < _STATE_BEGINS + 8 * _STATE_WORDS:
        raise RuntimeError(f"torch {torch.__version__} keeps another generator than a Mersenne Twister")
    return state
