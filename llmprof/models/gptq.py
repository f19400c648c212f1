"""GPTQ with 4 bits: what ExLlama v1 and v2 read.

y[n] = x[k] W[k, n]; rows in groups that share a scale and a zero:
``W = (q - (stored zero + 1)) * scale``. On disk (AutoGPTQ, version 1 of the format):

- ``qweight`` I32 [k / 8, n]: eight consecutive rows of a column, the lowest nibble first;
- ``qzeros`` I32 [groups, n / 8]: zero - 1 of eight consecutive columns, lowest nibble first;
- ``scales`` F16 [groups, n];
- ``g_idx`` I32 [k], optional: the group of each row; without it rows are in order.

Source: exllama_ext/cuda_func/q4_matrix.cu of exllama 0.1.0. Uses numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.models.random_values import RandomSource
from llmprof.models.safetensors.writer import PlannedTensor

BITS = 4
_LEVELS = 15
_SHIFTS = np.arange(8, dtype=np.uint32) * 4
_Q_STD = math.sqrt(16**2 / 12)
"""Root mean square of a uniform 4-bit integer about its centre (continuous approximation)."""


@dataclass(frozen=True)
class Quantised:
    """One projection, packed."""

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[np.float16]


def round_to_nearest(weight: NDArray[np.float32], group_size: int) -> Quantised:
    """Quantise [n, k] (HF's order) without calibration: each weight to its nearest level.

    The range of a group always holds 0 and its zero lies on a level in 1 … 14, so the error of a
    weight is at most half a scale (and the rounding of the scale to fp16).

    Args:
        group_size: divides k; k and n are multiples of 8.
    """
    n, k = weight.shape
    groups = k // group_size
    rows = weight.T.reshape(groups, group_size, n)
    low = np.minimum(rows.min(axis=1), 0.0)
    high = np.maximum(rows.max(axis=1), 0.0)
    span = high - low
    # A stored zero is zero - 1 in four bits, which cannot express 0.
    safe = np.where(span > 0, span, 1.0)
    zeros = np.clip(np.rint(-low * _LEVELS / safe), 1, _LEVELS - 1)
    wanted = np.maximum(-low / zeros, high / (_LEVELS - zeros))
    # The smallest normal half: a group of zeros needs some scale, and a subnormal one loses bits.
    scales = np.maximum(wanted, 2.0**-14).astype(np.float16)
    steps = np.rint(rows / scales.astype(np.float32)[:, None, :]) + zeros[:, None, :]
    q = np.clip(steps, 0, _LEVELS).astype(np.uint32).reshape(k // 8, 8, n)
    stored = (zeros - 1).astype(np.uint32).reshape(groups, n // 8, 8)
    return Quantised(
        np.bitwise_or.reduce(q << _SHIFTS[None, :, None], axis=1).view(np.int32),
        np.bitwise_or.reduce(stored << _SHIFTS, axis=2).view(np.int32),
        scales,
    )


def dequantise(packed: Quantised, offset: int = 1) -> NDArray[np.float32]:
    """[n, k] fp32 of a projection without ``g_idx``.

    Args:
        offset: what a stored zero is below the zero; 0 in version 2 of the format.
    """
    q = packed.qweight.view(np.uint32)[:, None, :] >> _SHIFTS[None, :, None] & np.uint32(15)
    zeros = packed.qzeros.view(np.uint32)[:, :, None] >> _SHIFTS & np.uint32(15)
    k, n = q.shape[0] * 8, q.shape[2]
    groups = packed.scales.shape[0]
    levels = q.reshape(groups, k // groups, n).astype(np.float32)
    centred = levels - (zeros.reshape(groups, 1, n).astype(np.float32) + offset)
    values: NDArray[np.float32] = (centred * packed.scales[:, None, :].astype(np.float32)).reshape(
        k, n
    )
    return np.ascontiguousarray(values.T)


def random_tensors(
    key: str, k: int, n: int, gain: float, group_size: int, source: RandomSource
) -> list[PlannedTensor]:
    """A random projection that maps unit variance to ``gain``² variance, mean 0."""
    groups = k // group_size
    scale = gain / (_Q_STD * math.sqrt(k))

    def zeros() -> list[Any]:
        # 7 or 8 at random (6 or 7 stored): the mean of q is 7.5.
        words = next(source.words(groups * n // 2 + 8)).view(np.uint32)[: groups * n // 8]
        return [(words & np.uint32(0x11111111)) | np.uint32(0x66666666)]

    return [
        PlannedTensor(f"{key}.qweight", "I32", (k // 8, n), lambda: source.words(k * n // 2)),
        PlannedTensor(f"{key}.qzeros", "I32", (groups, n // 8), zeros),
        PlannedTensor(
            f"{key}.scales", "F16", (groups, n), lambda: [np.full(groups * n, scale, np.float16)]
        ),
    ]
