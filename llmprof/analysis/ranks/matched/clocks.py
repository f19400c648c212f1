"""One time axis for all ranks, from their collectives.

Two facts of physics tie the clocks of two ranks together. No rank can end a collective before the
other has started it, which bounds the offset from both sides, for every pair of collectives: that
bound is a proof and needs no assumption. And all ranks end a collective at nearly the same moment
(on two H100s over NVLink: −0.6 … +1.0 µs over 7,680 all-reduces), so the median difference of the
ends is the offset; how far the ends scatter around it is the residual that is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints

LEAST = 8
"""Collectives that a fit takes at least."""
DRIFT_LEAST = 64
"""Collectives from which on a drift is fitted as well."""
SAME_CLOCK_NS = 5_000
"""Largest offset that processes of one host can have: beyond, the clocks are not one."""


@dataclass(frozen=True)
class ClockFit:
    """The clock of one rank against the reference rank's: reference = own − ``offset(own)``."""

    rank: int
    offset_ns: int
    """At ``origin_ns``."""
    drift_ppb: float
    """Change of the offset, ns a second; 0 where none is seen."""
    origin_ns: int
    low_ns: int
    """Proved: the offset at any time is at least this (a collective does not end before its last
    start); with a drift, after it is taken out."""
    high_ns: int
    residual_ns: int
    """95 % of the ends of the same collective are this close to each other after the fit."""
    collectives: int
    moved: bool
    """Times were moved by the fit; else the clocks agree as they are."""
    left_ns: int = 0
    """Median difference of the ends that was left as it is, because no clock had to be moved."""

    @property
    def error_ns(self) -> int:
        """How far the axis may be off, proved."""
        return max(0, self.high_ns - self.offset_ns, self.offset_ns - self.low_ns)

    def to_reference(self, own_ns: Ints) -> Ints:
        if not self.moved:
            return own_ns
        return own_ns - self._offset(own_ns)

    def to_own(self, reference_ns: Ints) -> Ints:
        """The inverse; exact within 1 ns for drifts below 1000 ppm over an hour."""
        if not self.moved:
            return reference_ns
        return reference_ns + self._offset(reference_ns + self.offset_ns)

    def _offset(self, own_ns: Ints) -> Ints:
        offset: Ints = np.full(len(own_ns), self.offset_ns, np.int64)
        if self.drift_ppb:
            offset = offset + np.rint((own_ns - self.origin_ns) * (self.drift_ppb * 1e-9)).astype(
                np.int64
            )
        return offset


def fit(
    rank: int,
    reference: tuple[Ints, Ints],
    own: tuple[Ints, Ints],
    waits_for_all: bool,
    same_host: bool,
) -> ClockFit | Unavailable:
    """From the same collectives as (start, end) on both ranks, own times as recorded.

    Args:
        waits_for_all: every one of them is of a sort that no rank ends before all have started.
        same_host: both ranks read CLOCK_MONOTONIC of one host: no drift is looked for, and times
            are moved only if they must be.

    Returns:
        ``Unavailable`` where the ends contradict one clock: the residual is above the transfer of a
        small collective, or no offset satisfies every collective.
    """
    count = len(own[1])
    if count < LEAST:
        return Unavailable(f"{count} common collectives: a clock is fitted from {LEAST} on")
    difference = own[1] - reference[1]
    origin = int(own[1][0])
    drift = 0.0
    if not same_host and count >= DRIFT_LEAST:
        drift = _slope(own[1] - origin, difference)
    bent = np.rint((own[1] - origin) * drift).astype(np.int64)
    flat = difference - bent
    offset = int(np.median(flat))
    residual = int(np.percentile(np.abs(flat - offset), 95))
    scatter = int(np.percentile(np.abs(difference - int(np.median(difference))), 95))
    if scatter <= 2 * residual:  # the ends scatter hardly more without it: no drift is seen
        drift, bent = 0.0, np.zeros_like(bent)
        offset, residual = int(np.median(difference)), scatter
    shortest = np.minimum(own[1] - own[0], reference[1] - reference[0])
    transfer = int(np.percentile(shortest, 5))
    if residual > max(transfer, 1):
        return Unavailable(
            f"rank {rank}: ends of the same collective differ by {residual / 1e3:.1f} µs after the"
            f" fit, more than the {transfer / 1e3:.1f} µs that the shortest ones take"
        )
    low, high = offset, offset
    if waits_for_all:
        low = int((own[0] - bent - reference[1]).max())
        high = int((own[1] - bent - reference[0]).min())
        if low > high + 2 * residual:
            return Unavailable(
                f"rank {rank}: no offset fits all collectives: one starts"
                f" {(low - high) / 1e3:.1f} µs after it ends"
            )
    least = max(SAME_CLOCK_NS, transfer) if same_host else residual
    moved = abs(offset) > least or drift != 0.0
    left = 0
    if not moved:
        left, offset, drift = offset, 0, 0.0
    high = max(low, high)
    return ClockFit(rank, offset, drift * 1e9, origin, low, high, residual, count, moved, left)


def _slope(time: Ints, difference: Ints) -> float:
    """Median slope between both halves (Theil and Sen's, on pairs half the span apart): robust
    against the collectives whose ends do not agree."""
    half = len(time) // 2
    across = (time[half : 2 * half] - time[:half]).astype(np.float64)
    there = across > 0
    if not there.any():
        return 0.0
    rise = (difference[half : 2 * half] - difference[:half]).astype(np.float64)
    return float(np.median(rise[there] / across[there]))
