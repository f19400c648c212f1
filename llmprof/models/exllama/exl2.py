"""EXL2: what ExLlamaV2 reads, bits that differ from group to group.

y[n] = x[k] W[k, n]. Rows are permuted, then cut into groups, the widest bits first:

- ``q_weight`` I32 [Σ rows × bits / 32, n]: of each column, the groups' b-bit integers as one bit
  string, lowest bits first;
- ``q_scale`` I32 [groups, n / 8]: four bits a column, lowest nibble first;
- ``q_scale_max`` F16 [groups];
- ``q_groups`` I16 [2 × groups]: bits, and the first row of ``q_weight``, of each group;
- ``q_invperm`` I32 [k]: input feature → its row.

``W = (q - 2^(b-1)) * (scale + 1)² * scale_max / 256``. Source: ext.py and exllamav2_ext/cuda
(q_matrix.cu, pack_tensor.cu) of exllamav2 0.3.2. Uses numpy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.models.random_values import RandomSource
from llmprof.models.safetensors.writer import PlannedTensor

BITS = (2, 3, 4, 5, 6, 8)
GROUP = 128
ROW_UNIT = 32
"""Rows of a group come in this unit: the kernels take 32 at a time."""
_SCALE_RMS = 0.482
"""Root mean square of (1 … 16)² / 256."""


def groups_of(k: int, bits: int | None) -> list[tuple[int, int]]:
    """(bits, rows) of each group, widest first; the last group may be short.

    ``bits`` None is a mix as the converter makes them: an eighth of the groups at 5 bits, an
    eighth at 3, the others at 4, so that the average is 4.
    """
    sizes = [GROUP] * (k // GROUP) + ([k % GROUP] if k % GROUP else [])
    if bits is not None:
        return [(bits, size) for size in sizes]
    edge = max(1, len(sizes) // 8) if len(sizes) > 2 else 0
    plan = [5] * edge + [4] * (len(sizes) - 2 * edge) + [3] * edge
    return list(zip(plan, sizes, strict=True))


def random_tensors(
    key: str,
    k: int,
    n: int,
    gain: float,
    bits: int | None,
    source: RandomSource,
    input_name: str,
) -> list[PlannedTensor]:
    """A random projection that maps unit variance to ``gain``² variance.

    Args:
        bits: of all groups, one of ``BITS``; ``None`` is the mix of ``groups_of``.
        input_name: projections of one input (q, k, v) share their permutation, as the converter's
            do, which orders rows by the statistics of the input.
    """
    groups = groups_of(k, bits)
    rows = [size * width // 32 for width, size in groups]
    starts = [0, *itertools.accumulate(rows)]

    def weight() -> Iterator[NDArray[Any]]:
        for (width, _), count in zip(groups, rows, strict=True):
            if width == 4:
                yield from source.nibbles(count * n * 4)
            else:
                yield from _odd(source, width, count, n)

    def table() -> list[Any]:
        flat = [value for (b, _), at in zip(groups, starts, strict=False) for value in (b, at)]
        return [np.array(flat, np.uint16)]

    def scale_max() -> list[Any]:
        return [np.array([gain / (_q_rms(b) * _SCALE_RMS * math.sqrt(k)) for b, _ in groups], "f2")]

    count = len(groups)
    return [
        PlannedTensor(f"{key}.q_weight", "I32", (starts[-1], n), weight),
        PlannedTensor(
            f"{key}.q_invperm",
            "I32",
            (k,),
            lambda: [source.permutation(input_name, k).astype(np.int32)],
        ),
        PlannedTensor(
            f"{key}.q_scale", "I32", (count, n // 8), lambda: source.words(count * n // 2)
        ),
        PlannedTensor(f"{key}.q_scale_max", "F16", (count,), scale_max),
        PlannedTensor(f"{key}.q_groups", "I16", (2 * count,), table),
    ]


def _odd(source: RandomSource, bits: int, rows: int, n: int) -> Iterator[NDArray[Any]]:
    """``rows`` words of each column with odd integers of so many bits: their mean is 2^(bits-1).

    Uniform ones are half a level off, by the same in every column, and a residual stream that they
    feed collapses to a constant. The lowest bits lie the same way in every ``bits`` words.
    """
    lowest = sum(1 << (i * bits) for i in range(32))
    masks = np.array([lowest >> (32 * i) & 0xFFFFFFFF for i in range(bits)], np.uint32)
    done = 0
    for words in source.words(-(-rows * n * 4 // 8) * 8):
        data = words.view(np.uint32)[: rows * n - done]
        row = np.arange(done, done + data.size) // n
        done += data.size
        yield data | masks[row % bits]


def _q_rms(bits: int) -> float:
    """Root mean square of q - 2^(b-1): for 1 … 15 at 4 bits, as ``nibbles``, else for odd q."""
    centre = 1 << (bits - 1)
    levels = range(1, 1 << bits, 1 if bits == 4 else 2)
    return math.sqrt(sum((q - centre) ** 2 for q in levels) / len(levels))
