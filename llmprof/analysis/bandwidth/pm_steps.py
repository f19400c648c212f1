"""Measured bandwidth of single decode steps, from PM samples. Pure functions over numpy arrays.

A sample's percentage is taken as constant over its own time, so a step's value is the mean of the
samples that overlap it, weighted by how long each does. Times are ns of one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmprof.records import Unavailable

Floats = NDArray[np.float64]
MIN_SAMPLES = 4.0
"""Samples' worth of time that a step must have. The samples at its borders are shared with its
neighbours; of four, at least three lie wholly inside."""
MIN_COVERAGE = 0.9
"""Share of a step that must lie under samples: none is made up where the buffer overflowed."""
ACTIVE_PCT = 5.0
"""SMs at work above this; between rounds they read 0 (H100)."""
CONTRADICTION = "the PM samples' times contradict the steps"
ALIGN_SAMPLES = 20_000
"""Enough for a correlation; a minute at 5 kHz has 300,000."""


@dataclass(frozen=True, eq=False)
class StepActivity:
    """One entry a decode step; NaN where a step has too few samples or too vague a place."""

    dram_pct: Floats
    sm_active_pct: Floats
    dram_gb_s: Floats
    """Measured: ``dram_pct`` × peak; NaN throughout without a peak. GB is 1e9 bytes."""
    samples: Floats
    """Samples' worth of time under each step, a real number."""
    unavailable: Unavailable | None
    """Why no step at all has a value."""


class Alignment(NamedTuple):
    """``offset_ns`` is to be added to the samples' times; ``score`` is Pearson's r there, or NaN
    where nothing varies."""

    offset_ns: int
    score: float


def weighted_means(
    edges_ns: ArrayLike, start_ns: ArrayLike, end_ns: ArrayLike, values: ArrayLike
) -> tuple[Floats, Floats]:
    """Mean of a piecewise constant ``values`` over each [edges[i], edges[i + 1]].

    Args:
        edges_ns: ascending, n + 1 of them.
        start_ns: m samples, ascending; gaps between them are allowed, an overlap goes to the later.
        end_ns: their ends.
        values: theirs.

    Returns:
        Means over the covered time of each interval (NaN where none is), and that time, ns; n each.
    """
    edges, start, end = (np.asarray(a, dtype=np.int64) for a in (edges_ns, start_ns, end_ns))
    value = np.asarray(values, dtype=np.float64)
    if len(start) == 0 or len(edges) < 2:
        count = max(0, len(edges) - 1)
        return np.full(count, np.nan), np.zeros(count)
    # CUPTI's conversion of the GPU's clock can make neighbours overlap by some ns.
    start = np.maximum.accumulate(start)
    end = np.minimum(np.maximum(start, end), np.append(start[1:], end[-1]))
    origin = start[0]
    # Both integrals are straight between these knots, and flat in a gap.
    knots = np.column_stack((start, end)).ravel() - origin
    width = (end - start).astype(np.float64)
    at = (edges - origin).astype(np.float64)
    covered = np.diff(np.interp(at, knots, _running(width)))
    area = np.diff(np.interp(at, knots, _running(width * value)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(covered > 0, area / covered, np.nan), covered


def _running(pieces: Floats) -> Floats:
    """Running sum at the start and the end of each piece, interleaved."""
    total = np.cumsum(pieces)
    return np.column_stack((total - pieces, total)).ravel()


def step_activity(
    stamps_ns: ArrayLike,
    start_ns: ArrayLike,
    end_ns: ArrayLike,
    dram_pct: ArrayLike,
    sm_active_pct: ArrayLike,
    clock_error_ns: int | None,
    peak_gb_s: float | None,
    min_samples: float = MIN_SAMPLES,
) -> StepActivity:
    """What DRAM and SMs did in each step, [stamps[i], stamps[i + 1]].

    Args:
        stamps_ns: ``RoundRecord.stamps_ns``, on the samples' clock.
        start_ns, end_ns, dram_pct, sm_active_pct: as in ``PmSamples``.
        clock_error_ns: ``Placement.error_ns``. A step shorter than this may be another step.
        peak_gb_s: ``GpuDevice.peak_bandwidth_gb_s``.
        min_samples: steps with fewer get no value.
    """
    stamps = np.asarray(stamps_ns, dtype=np.int64)
    start, end = np.asarray(start_ns, dtype=np.int64), np.asarray(end_ns, dtype=np.int64)
    dram, covered = weighted_means(stamps, start, end, dram_pct)
    sm, _ = weighted_means(stamps, start, end, sm_active_pct)
    length = np.diff(stamps).astype(np.float64)
    width = float(np.median(end - start)) if len(start) else float("nan")
    samples = covered / width if len(start) else np.zeros(len(length))
    enough = (samples >= min_samples) & (covered >= MIN_COVERAGE * length)
    placed = length >= (np.inf if clock_error_ns is None else clock_error_ns)
    good = enough & placed
    dram, sm = np.where(good, dram, np.nan), np.where(good, sm, np.nan)
    return StepActivity(
        dram_pct=dram,
        sm_active_pct=sm,
        dram_gb_s=dram / 100 * (np.nan if peak_gb_s is None else peak_gb_s),
        samples=samples,
        unavailable=None if good.any() else _reason(length, width, enough, clock_error_ns),
    )


def _reason(
    length: Floats, width: float, enough: NDArray[np.bool_], clock_error_ns: int | None
) -> Unavailable:
    if not len(length):
        return Unavailable("the round has no decode step")
    if np.isnan(width):
        return Unavailable("the round has no PM samples")
    step_us = float(np.median(length)) / 1e3
    if not enough.any():
        return Unavailable(
            f"too few PM samples a step: one every {width / 1e3:.0f} µs, "
            f"a step takes {step_us:.0f} µs"
        )
    if clock_error_ns is None:
        return Unavailable("the PM samples could not be put on the run's clock")
    return Unavailable(
        f"the PM samples' clock is known to ±{clock_error_ns / 1e3:.0f} µs, "
        f"a step takes {step_us:.0f} µs"
    )


def misplaced(
    stamps_ns: ArrayLike,
    prefill_start_ns: int,
    start_ns: ArrayLike,
    end_ns: ArrayLike,
    sm_active_pct: ArrayLike,
    clock_error_ns: int,
) -> str:
    """How the samples' places contradict the round's own pattern; empty where they do not, or where
    it cannot be told.

    The GPU works from the prefill on to the last step, and then no more. On an H100 the last work
    ended 0.01 to 0.4 ms before the last stamp, in seven rounds of four engines. A sampler whose
    clock had gone wrong once placed its samples 11.9 ms off, within its own bounds.

    Args:
        stamps_ns: ``RoundRecord.stamps_ns``.
        start_ns, end_ns, sm_active_pct: as in ``PmSamples``.
        clock_error_ns: ``Placement.error_ns``: that much is no contradiction.
    """
    stamps = np.asarray(stamps_ns, dtype=np.int64)
    start, end = np.asarray(start_ns, dtype=np.int64), np.asarray(end_ns, dtype=np.int64)
    active = np.asarray(sm_active_pct, dtype=np.float64) > ACTIVE_PCT
    if len(stamps) < 2 or not active.any():
        return ""
    slack = clock_error_ns + 2 * int(np.median(end - start))
    step = int(np.median(np.diff(stamps)))
    begun, ended = int(start[active][0]), int(end[active][-1])
    last, first = int(stamps[-1]), int(stamps[0])
    work = ended - begun
    if not last - first - step - slack <= work <= last - prefill_start_ns + slack:
        return ""  # another program works too: the round's edges are not seen
    found = []
    # The work's end and begin are seen where idle samples follow and precede it.
    if np.count_nonzero(start > ended) > 1 and not -step - slack <= ended - last <= slack:
        found.append(f"the last work {_apart(ended - last)} the last step's end")
    late = begun - prefill_start_ns
    if np.count_nonzero(end < begun) > 1 and not -slack <= late <= first - prefill_start_ns + slack:
        found.append(f"the first work {_apart(late)} the prefill's begin")
    return f"{CONTRADICTION}: {', '.join(found)}" if found else ""


def _apart(ns: int) -> str:
    return f"{abs(ns) / 1e6:.1f} ms {'behind' if ns > 0 else 'before'}"


def align_to_busy(
    start_ns: ArrayLike,
    end_ns: ArrayLike,
    dram_pct: ArrayLike,
    busy_start_ns: ArrayLike,
    busy_end_ns: ArrayLike,
    max_shift_ns: int,
) -> Alignment:
    """The shift of the samples that makes DRAM activity fit best to when kernels ran.

    Correlates each sample's percentage with the share of its time that the GPU was busy. Steps
    repeat, so shifts a step apart fit almost alike: ``max_shift_ns`` should be the clock's error
    bound, and less than half a step for the answer to mean anything.

    Args:
        start_ns, end_ns, dram_pct: as in ``PmSamples``; at most the middle 20,000 are used.
        busy_start_ns, busy_end_ns: kernels, sorted by start; they may overlap.
        max_shift_ns: shifts in ± this are tried, at a fortieth of a sample's width.
    """
    start, end = np.asarray(start_ns, dtype=np.int64), np.asarray(end_ns, dtype=np.int64)
    skip = max(0, len(start) - ALIGN_SAMPLES) // 2
    middle = slice(skip, skip + ALIGN_SAMPLES)
    start, end = start[middle], end[middle]
    activity = np.asarray(dram_pct, dtype=np.float64)[middle]
    begin, until = _merged(busy_start_ns, busy_end_ns)
    if len(start) < 3 or not len(begin):
        return Alignment(0, float("nan"))
    origin = min(start[0], begin[0])
    knots = np.column_stack((begin, until)).ravel() - origin
    busy = _running((until - begin).astype(np.float64))
    left, right = start - origin, end - origin

    def score(shift: int) -> float:
        share = (np.interp(right + shift, knots, busy) - np.interp(left + shift, knots, busy)) / (
            right - left
        )
        if share.std() == 0 or activity.std() == 0:
            return float("nan")
        return float(np.corrcoef(share, activity)[0, 1])

    step = max(1, int(np.median(end - start)) // 4)
    reach = max_shift_ns // step * step
    best = _best(score, range(-reach, reach + 1, step))
    near = range(best.offset_ns - step, best.offset_ns + step + 1, max(1, step // 10))
    return _best(score, [s for s in near if abs(s) <= max_shift_ns])


def _best(score: Callable[[int], float], shifts: Iterable[int]) -> Alignment:
    """The shift of the highest score; of equal ones, the one nearest to zero."""
    tried = [Alignment(shift, score(shift)) for shift in sorted(shifts, key=abs)]
    return max(tried, key=lambda a: -np.inf if np.isnan(a.score) else a.score)


def _merged(start_ns: ArrayLike, end_ns: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Overlapping intervals, sorted by start, as disjoint ones."""
    start, end = np.asarray(start_ns, dtype=np.int64), np.asarray(end_ns, dtype=np.int64)
    if not len(start):
        return start, end
    until = np.maximum.accumulate(end)
    first = np.concatenate(([True], start[1:] > until[:-1]))
    return start[first], until[np.concatenate((np.flatnonzero(first)[1:] - 1, [len(start) - 1]))]
