"""Random numbers for synthetic weights, fast enough for tens of gigabytes. Uses numpy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 25
"""Bytes a chunk."""
_POOL = 16_777_213
"""Halves in a pool: a prime, so that no row of a matrix repeats at a fixed distance."""


class RandomSource:
    """Seeded chunks of random words and halves.

    Words are fresh; converting each half would take a minute for every 5 billion weights, so halves
    are windows of a pool at random offsets, one pool a standard deviation.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = np.random.Generator(np.random.SFC64(seed))
        self._pools: dict[float, NDArray[np.float16]] = {}

    def words(self, n_bytes: int) -> Iterator[NDArray[np.uint64]]:
        """``n_bytes`` (a multiple of 8) of uniform bits."""
        while n_bytes > 0:
            size = min(n_bytes, _CHUNK)
            yield self._rng.integers(0, 2**64, size // 8, dtype=np.uint64)
            n_bytes -= size

    def nibbles(self, n_bytes: int) -> Iterator[NDArray[np.uint64]]:
        """Four-bit fields in 1 … 15, so that their mean is 8, the centre that EXL2 subtracts."""
        for chunk in self.words(n_bytes):
            used = chunk | chunk >> np.uint64(1) | chunk >> np.uint64(2) | chunk >> np.uint64(3)
            empty = ~used & np.uint64(0x1111111111111111)
            yield chunk | empty << np.uint64(3)

    def halves(self, count: int, std: float) -> Iterator[NDArray[np.float16]]:
        """``count`` values, uniform about 0 with standard deviation ``std``."""
        pool = self._pool(std)
        while count > 0:
            at = int(self._rng.integers(0, _POOL))
            window = pool[at : at + count]
            yield window
            count -= window.size

    def signs(self, count: int, magnitude: float) -> NDArray[np.float16]:
        """``count`` values of ±``magnitude``."""
        return np.where(self._rng.integers(0, 2, count) == 1, magnitude, -magnitude).astype(
            np.float16
        )

    def permutation(self, name: str, count: int) -> NDArray[Any]:
        """Equal for equal names, whatever was drawn before."""
        return np.random.default_rng((self._seed, zlib.crc32(name.encode()))).permutation(count)

    def _pool(self, std: float) -> NDArray[np.float16]:
        if std not in self._pools:
            # Uniform on ±a has standard deviation a / √3.
            values = self._rng.random(_POOL, dtype=np.float32)
            values -= np.float32(0.5)
            values *= np.float32(2 * std * math.sqrt(3))
            self._pools[std] = values.astype(np.float16)
        return self._pools[std]
