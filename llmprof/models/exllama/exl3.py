"""EXL3: what ExLlamaV3 reads, a trellis code (QTIP) between two Hadamard transforms.

y[n] = x[k] W[k, n], W = diag(suh) H w H diag(svh), H the orthonormal 128-point Hadamard matrix on
every block of 128, w the decoded trellis:

- ``trellis`` I16 [k / 16, n / 16, 16 × bits]: a ring of bits for each 16 × 16 tile;
- ``suh`` F16 [k], ``svh`` F16 [n]: signs and scales;
- ``mul1`` I32 scalar 0x83DCD12D: which codebook the states index.

k and n are rounded up to 128; the loader extends inputs with zeros and trims outputs. Decoded
values of uniform bits have variance 1. Source: modules/quant/exl3.py, modules/linear.py and
exllamav3_ext/quant (codebook.cuh, exl3_dq.cuh) of exllamav3 1.6.5. Uses numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmprof.models.random_values import RandomSource
from llmprof.models.safetensors.writer import PlannedTensor

BITS = tuple(range(1, 9))
BLOCK = 128
MUL1 = 0x83DCD12D


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def random_tensors(
    key: str, k: int, n: int, gain: float, bits: int, source: RandomSource
) -> list[PlannedTensor]:
    """A random projection that maps unit variance to ``gain``² variance."""
    rows, columns = padded(k), padded(n)

    def output_scales() -> list[Any]:
        scales = source.signs(columns, gain / math.sqrt(k))
        scales[n:] = 0  # padding must stay silent
        return [scales]

    return [
        PlannedTensor(
            f"{key}.trellis",
            "I16",
            (rows // 16, columns // 16, 16 * bits),
            lambda: source.words(rows * columns * bits // 8),
        ),
        PlannedTensor(f"{key}.suh", "F16", (rows,), lambda: [source.signs(rows, 1.0)]),
        PlannedTensor(f"{key}.svh", "F16", (columns,), output_scales),
        PlannedTensor(f"{key}.mul1", "I32", (), lambda: [np.array([MUL1], np.uint32)]),
    ]
