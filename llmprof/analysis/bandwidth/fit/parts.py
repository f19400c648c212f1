"""How finely kernels are cut, and which groups stay apart: decided by held-out samples.

Candidates are a ladder of part lengths. Of those whose error on held-out samples is within 5 % or
one standard error of the best, the coarsest is taken: on an H100 finer parts went on to win some
percent, while their single values began to swing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.design import Cuts, Equations
from llmprof.analysis.bandwidth.fit.nonnegative import solve

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LADDER_NS = (float("inf"), 12_000.0, 8_000.0, 6_000.0, 4_000.0, 3_000.0, 2_000.0, 1_500.0)
SMOOTH = (0.0, 1e-7, 1e-6, 1e-5)
"""Weights of the squared jumps between neighbouring parts, for a sample; 0 unless one helps."""
MAX_PARTS = 32
CUT_SHARE = 0.004
"""Of all kernel time: a smaller group stays in one piece."""
FOLDS = 5
NEAR_BEST = 1.05


@dataclass(frozen=True)
class Error:
    """Mean squared error on held-out samples, in squared %."""

    mean: float
    deviation: float
    """Standard error over the folds."""


def cuts(median_ns: Floats, share: Floats, length_ns: float) -> Cuts:
    """Equal parts of about ``length_ns`` for every group with a share in the time."""
    many = np.clip(np.rint(median_ns / length_ns), 1, MAX_PARTS).astype(int)
    many[share < CUT_SHARE] = 1
    return Cuts.of([np.linspace(0.0, 1.0, int(n) + 1) for n in many])


def roughness(cut: Cuts, median_ns: Floats) -> Floats:
    """Quadratic form of the jumps between neighbouring parts; (columns + 1, columns + 1)."""
    form = np.zeros((cut.columns + 1,) * 2)
    for group in range(len(cut.first) - 1):
        first, last = int(cut.first[group]), int(cut.first[group + 1])
        if last - first > 1:
            weight = 1000 / (median_ns[group] / (last - first))  # a random walk over µs
            at = np.arange(first, last - 1)
            form[at, at] += weight
            form[at + 1, at + 1] += weight
            form[at, at + 1] -= weight
            form[at + 1, at] -= weight
    return form


def held_out(found: Equations, penalty: Floats | None = None) -> Error:
    """Cross-validation over folds of blocks."""
    blocks = len(found.count)
    start = None
    errors = []
    for fold in range(min(FOLDS, blocks)):
        test = (np.arange(blocks) % FOLDS == fold).astype(np.float64)
        xx, xy, _, _, count = found.total(1 - test)
        if penalty is not None:
            xx = xx + penalty * count
        value, start = solve(xx, xy, start)
        txx, txy, tyy, _, tested = found.total(test)
        if tested:
            errors.append((tyy - 2 * txy @ value + value @ txx @ value) / tested)
    mean = float(np.mean(errors))
    return Error(mean, float(np.std(errors) / np.sqrt(len(errors))))


def coarsest(errors: list[Error]) -> int:
    """Index of the first, coarsest candidate that is as good as the best."""
    best = min(errors, key=lambda e: e.mean)
    limit = max(NEAR_BEST * best.mean, best.mean + best.deviation)
    return next(i for i, error in enumerate(errors) if error.mean <= limit)
