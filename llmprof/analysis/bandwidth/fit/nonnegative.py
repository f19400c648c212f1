"""Least squares without negative values, from normal equations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SLACK = 1e-7
"""Of the largest value: what counts as zero. Smaller, and columns that are nearly alike go in and
out for ever."""
TINY = 1e-7
"""Relative ridge: keeps a column that no sample tells from another from blowing up."""


def solve(xx: Floats, xy: Floats, start: Bools | None = None) -> tuple[Floats, Bools]:
    """Minimise ``c'xx c - 2 xy c`` over ``c >= 0`` by block principal pivoting (Kim and Park 2011).

    Args:
        xx: (C, C), positive semidefinite.
        xy: (C,).
        start: columns that may be positive, as a former solution left them.

    Returns:
        The values, and which are free (positive).
    """
    size = np.sqrt(np.maximum(np.diag(xx), 0))
    there = size > size.max(initial=0) * 1e-9
    scale = np.where(there, 1 / np.where(there, size, 1), 0)
    a = xx * scale[:, None] * scale[None, :]
    a[np.diag_indices_from(a)] += TINY + ~there
    b = xy * scale
    free = np.ones(len(b), bool) if start is None else start.copy()
    free &= there
    fewest, patience = len(b) + 1, 5
    value, slope = _split(a, b, free)
    steep = SLACK * float(np.abs(b).max(initial=0))
    low = SLACK * float(np.abs(value).max(initial=0))
    for _ in range(len(b) + 20):
        wrong = np.where(free, value < -low, slope < -steep) & there
        count = int(wrong.sum())
        if not count:
            break
        if count < fewest:
            fewest, patience = count, 5
            free ^= wrong
        elif patience:
            patience -= 1
            free ^= wrong
        else:  # single pivoting ends for certain
            free[np.flatnonzero(wrong)[-1]] ^= True
        value, slope = _split(a, b, free)
    return np.maximum(value, 0) * scale, free


def _split(a: Floats, b: Floats, free: Bools) -> tuple[Floats, Floats]:
    value = np.zeros(len(b))
    at = np.flatnonzero(free)
    if len(at):
        value[at] = np.linalg.solve(a[np.ix_(at, at)], b[at])
    slope = a[:, at] @ value[at] - b if len(at) else -b
    return value, slope
