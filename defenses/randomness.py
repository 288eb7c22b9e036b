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
        """Return independent standard normal numbers, float64 on the CPU, none of which an earlier call returned.

        They are made of the ChaCha20 key stream (RFC 8439) by the transform of Box and Muller (1958): nobody who
        does not hold the key can tell the stream from true randomness, whatever part of it is known. At most 8.6 in
        size, which about one of 10^17 should exceed.
        """
        count = math.prod(shape)
        pairs = -(-count // 2)
        bits = np.frombuffer(self._cipher.update(bytes(16 * pairs)), "<u8").reshape(2, pairs) >> 11
        # In place: a gradient has as many entries as the network, and memory is what takes the time.
        uniforms = bits.astype(np.float64)
        uniforms += 0.5
        uniforms *= 2.0**-53
        first, second = torch.from_numpy(uniforms)
        length, angle = first.log_().mul_(-2.0).sqrt_(), second.mul_(2.0 * math.pi)
        made = torch.empty(2 * pairs, dtype=torch.float64, device="cpu")
        torch.mul(length, angle.cos(), out=made[:pairs])
        torch.mul(length, angle.sin_(), out=made[pairs:])
        return made[:count].reshape(tuple(shape))

    @cached_property
    def _cipher(self) -> CipherContext:
        key = hashlib.blake2b(b"normal", key=self.key, digest_size=_KEY_BYTES).digest()
        return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


@lru_cache(maxsize=1)
def _fresh_state() -> npt.NDArray[np.uint8]:
    """Return a fresh generator's state; raises `RuntimeError` where torch keeps another kind of generator."""
    state: npt.NDArray[np.uint8] = torch.Generator().manual_seed(0).get_state().numpy()
    if len(state) < _STATE_BEGINS + 8 * _STATE_WORDS:
        raise RuntimeError(f"torch {torch.__version__} keeps another generator than a Mersenne Twister")
    return state
