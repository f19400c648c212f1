"""Where the samples lie on the kernels' clock, found from the samples themselves.

The sampler's clock bound is 1.5 ms, a kernel takes 10 µs. The right shift is where kernels explain
the samples best. Steps repeat, so a shift by one step is nearly as good; for the fit of kernels
that repeat it is also nearly the same, and the shift nearest to zero is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.design import Activity, Cuts, shares
from llmprof.analysis.bandwidth.fit.nonnegative import solve

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEAR_NS = 24_000
"""Seen on an H100 where the sampler's clock was right: 0 to 20 µs."""
FAR_NS = 25_000_000
"""A wrong clock was off by 11.9 ms."""
COARSE_NS = 4_000
GOOD = 0.9
"""R² from which a shift is believed: 0.99 with one value a kernel, 0.04 with a wrong clock."""
FINE_PCT = 0.5
CLEARLY = 2.0
"""Where the GPU is never idle, shifts of some 10 µs fit nearly alike (a 7B model in a CUDA graph: a
residual of 0.14 % at -16 µs, 0.18 % at the right 0), and CUPTI's clock is right to less than one µs
where it is right at all: another shift must leave half of the residual that none leaves."""
REFINEMENTS = 15
STRETCHES = 8
DELTA_NS = 1_000
LEAST_DRIFT_NS = 2_000
LOOK = 1500
"""Samples that one shift is judged by."""


@dataclass(frozen=True)
class Shift:
    """``offset_ns`` is to be added to the samples' times."""

    offset_ns: int
    r2: float
    error_pct: float
    """Standard deviation of what is left, in the samples' own %."""

    @property
    def good(self) -> bool:
        """Samples that hardly vary are explained by anything: then what is left must be small."""
        return self.r2 >= GOOD or self.error_pct <= FINE_PCT


@dataclass(frozen=True, eq=False)
class Scan:
    """The shifts of one round's stretches."""

    blocks: tuple[Shift, ...]
    shift_ns: Ints
    """One entry a sample."""

    @property
    def offset_ns(self) -> int:
        return int(np.median([b.offset_ns for b in self.blocks]))

    @property
    def drift_ns(self) -> int:
        """Last stretch against the first."""
        return self.blocks[-1].offset_ns - self.blocks[0].offset_ns

    @property
    def worst(self) -> Shift:
        return min(self.blocks, key=lambda b: b.r2)


def scan(
    activity: Activity, cut: Cuts, start_ns: Ints, end_ns: Ints, value: Floats, blocks: int = 4
) -> Scan:
    """Shift of each of some stretches of a round: in the neighbourhood first, then far away.

    Args:
        cut: coarse parts. With one value a kernel, one that reads first and computes later looks
            like a wrong clock.
    """
    whole = cut
    latest = np.maximum.accumulate(activity.end_ns)
    width = int(np.median(end_ns - start_ns))
    blocks = max(1, min(blocks, len(value) // 200))
    edges = np.linspace(0, len(value), blocks + 1).astype(int)
    found: list[Shift] = []
    centre = 0
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        middle = max(low, (low + high - LOOK) // 2)
        part = slice(middle, min(high, middle + LOOK))
        look = _Look(activity, latest, whole, start_ns[part], end_ns[part], value[part])
        best = look.best(range(centre - NEAR_NS, centre + NEAR_NS + 1, COARSE_NS), CLEARLY)
        if not best.good:
            step = max(1, width // 4)
            far = look.best(range(-(FAR_NS // step) * step, FAR_NS + 1, step))
            near = range(far.offset_ns - step, far.offset_ns + step + 1, COARSE_NS)
            best = max(best, look.best(near), key=lambda s: s.r2)
        if best.offset_ns:
            near = range(best.offset_ns - COARSE_NS, best.offset_ns + COARSE_NS + 1, 1000)
            best = look.best(near)
        centre = best.offset_ns
        found.append(best)
    middles = (edges[:-1] + edges[1:]) / 2
    offsets = np.array([b.offset_ns for b in found], np.float64)
    if len(found) == 1 or np.ptp(offsets) <= 2 * COARSE_NS:
        # Coarse parts move the best shift by some µs: nothing is corrected by less.
        middle_ns = float(np.median(offsets))
        line = np.full(len(value), middle_ns if abs(middle_ns) > 2 * COARSE_NS else 0.0)
    else:
        # A drift; a clock that jumps leaves a residual that no line brings down.
        line = np.polyval(np.polyfit(middles, offsets, 1), np.arange(len(value)))
    moved = bool(np.any(line))
    for _ in range(REFINEMENTS):
        change = _correction(activity, cut, latest, start_ns, end_ns, value, line, moved)
        line = line + change
        if np.abs(change).max() < DELTA_NS / 4:
            break
    return Scan(tuple(found), np.rint(line).astype(np.int64))


def _correction(
    activity: Activity,
    cut: Cuts,
    latest: Ints,
    start_ns: Ints,
    end_ns: Ints,
    value: Floats,
    line: Floats,
    moved: bool,
) -> Floats:
    """What is left of offset and drift, from how the residual follows the curve's slope.

    A constant shift is hardly told from another profile of the kernels, so it is only corrected
    where the clock was wrong anyway (``moved``); a drift is told by the ends of the round.
    """
    edges = np.linspace(0, len(value), STRETCHES + 1).astype(int)
    shift = np.rint(line).astype(np.int64)
    looks = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = slice(low, min(high, low + LOOK // 2))
        begin, until = start_ns[part] + shift[part], end_ns[part] + shift[part]
        x = shares(activity, latest, cut, begin, until)
        later = shares(activity, latest, cut, begin + DELTA_NS, until + DELTA_NS)
        looks.append((low, x, later - x, value[part]))
    x = np.concatenate([look[1] for look in looks])
    curve, _ = solve(x.T @ x, np.concatenate([look[3] for look in looks]) @ x)
    places, shifts, weights = [], [], []
    for low, x, change, y in looks:
        slope = change @ curve / DELTA_NS
        strength = float(slope @ slope)
        if strength > 0:
            places.append(float(low + len(y) / 2))
            shifts.append(float(slope @ (y - x @ curve)) / strength)
            weights.append(np.sqrt(strength))
    if len(places) < 3:
        return np.zeros_like(line)
    fitted = np.polyfit(places, shifts, 1, w=weights)
    found = np.polyval(fitted, np.arange(len(line)))
    if not moved:
        found -= found.mean()
    # Less than this over the round is below what parts of some µs can show.
    still = not moved and np.ptp(found) < LEAST_DRIFT_NS
    return np.zeros_like(line) if still else np.asarray(found, np.float64)


class _Look:
    def __init__(
        self,
        activity: Activity,
        latest: Ints,
        whole: Cuts,
        start: Ints,
        end: Ints,
        value: Floats,
    ) -> None:
        self._activity, self._latest, self._whole = activity, latest, whole
        self._start, self._end, self._value = start, end, value
        self._spread = float(((value - value.mean()) ** 2).sum())

    def best(self, shifts: Iterable[int], within: float = 1.0) -> Shift:
        """No shift if that leaves at most ``within`` times the least error, else the best one."""
        tried = [self._shift(s) for s in sorted(shifts, key=abs)]
        least = min(tried, key=lambda s: s.error_pct)
        none = tried[0].offset_ns == 0 and tried[0].error_pct <= within * least.error_pct
        return tried[0] if none else least

    def _shift(self, shift: int) -> Shift:
        x = shares(
            self._activity, self._latest, self._whole, self._start + shift, self._end + shift
        )
        xx, xy = x.T @ x, x.T @ self._value
        xx[np.diag_indices_from(xx)] += 1e-9 * max(float(np.trace(xx)) / len(xx), 1e-30)
        values = np.linalg.solve(xx, xy)
        rest = self._value - x @ values
        left = float(rest @ rest)
        r2 = 1 - left / self._spread if self._spread else 0.0
        return Shift(shift, r2, float(np.sqrt(left / len(rest))))
