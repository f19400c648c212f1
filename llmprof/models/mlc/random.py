"""Random values for a library's parameters, kept so small that no activation overflows. numpy.

Codes of b bits stand for code - (2^(b-1) - 1) (``quantization/group_quantization.py``), so they are
uniform but for the highest, which becomes the centre: their mean is 0. (With it the mean is half a
scale: every output then has the same large part, the residual stream collapses to a constant and
every token is the same.) A scale gives its row unit variance from unit variance: centred 4-bit
codes have the standard deviation 4.2, so 1 / (4.2 √inputs); a fifth of that into the residual
stream. Norms are 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.models.mlc.metadata import ELEMENT_BYTES, MlcMetadata, MlcParameter
from llmprof.models.random_values import RandomSource

_RESIDUAL = ("o_proj", "down_proj", "out_proj", "c_proj")
_RESIDUAL_GAIN = 0.2
_EMBEDDING_STD = 0.5
_SPREAD = {3: 1.87, 4: 4.18, 8: 73.5}
"""Standard deviation of centred codes of so many bits."""
_LOWEST = {3: 0o1111111111, 4: 0x11111111, 8: 0x01010101}
"""The lowest bit of each code in a word of 32 bits."""


class RandomParameters:
    """Every parameter of ``library`` in chunks, as stored: bfloat16 as its uint16 words."""

    def __init__(self, library: MlcMetadata, vocab_size: int, seed: int) -> None:
        self._library = library
        self._vocab = vocab_size
        self._source = RandomSource(seed)
        scheme = library.quantization
        self._bits = next((b for b in _SPREAD if scheme.startswith(f"q{b}")), 4)
        self._shapes = {p.name: p.sizes(vocab_size) for p in library.parameters}

    def whole(self, parameter: MlcParameter) -> NDArray[Any]:
        """One parameter in its own shape."""
        return np.concatenate(list(self.chunks(parameter))).reshape(parameter.sizes(self._vocab))

    def chunks(self, parameter: MlcParameter) -> Iterator[NDArray[Any]]:
        """The parameter's values in row-major order, cut anywhere, one-dimensional."""
        shape = parameter.sizes(self._vocab)
        count = math.prod(shape)
        if "float" not in parameter.dtype:
            kind = np.dtype(parameter.dtype)
            size = count * kind.itemsize
            left = size
            for words in self._source.words(-(-size // 8) * 8):
                data = centred(words.view(np.uint32), self._bits).view(np.uint8)[:left]
                left -= data.size
                yield data.view(kind)
            return
        if "norm" in parameter.name:
            values: Iterator[NDArray[Any]] = iter([np.ones(count, np.float16)])
        elif parameter.name.endswith("q_scale"):
            values = self._scales(parameter.name, count)
        else:
            gain = _RESIDUAL_GAIN if any(r in parameter.name for r in _RESIDUAL) else 1.0
            std = gain / math.sqrt(shape[-1])
            values = self._source.halves(
                count, _EMBEDDING_STD if "embed" in parameter.name else std
            )
        for chunk in values:
            yield _stored(chunk, parameter.dtype)

    def _scales(self, name: str, count: int) -> Iterator[NDArray[np.float16]]:
        codes = self._shapes.get(name.removesuffix("q_scale") + "q_weight")
        bits = self._bits
        inputs = 32 // bits * codes[-1] if codes else 4096
        scale = 1 / (_SPREAD[bits] * math.sqrt(inputs))
        scale *= _RESIDUAL_GAIN if any(r in name for r in _RESIDUAL) else 1.0
        scale = _EMBEDDING_STD / _SPREAD[bits] if "embed" in name else scale
        for chunk in self._source.halves(count, scale * 0.05):
            yield chunk + np.float16(scale)


def centred(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    """The words with every code of all ones turned into 2^(bits-1) - 1, the centre.

    Args:
        words: uniform; codes lie from the lowest bit up, 3-bit ones ten to a word.
        bits: of a code: 3, 4 or 8.
    """
    full = words & np.uint32(_LOWEST[bits])
    for bit in range(1, bits):
        full &= words >> np.uint32(bit)
    return words ^ (full << np.uint32(bits - 1))


def _stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if ELEMENT_BYTES[dtype] == 1:  # float8: 0.5 in e4m3fn and e5m2, negative where the value is
        half = 0x30 if "e4m3" in dtype else 0x38
        return np.where(values < 0, half | 0x80, half).astype(np.uint8)
    return values.astype(dtype)
