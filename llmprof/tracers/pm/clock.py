"""PM samples on CLOCK_MONOTONIC, with a bound on the error.

CUPTI converts the GPU's sample times to its own host clock, CLOCK_REALTIME on Linux (CUPTI's user
guide, "PM Sampling": the timestamps are CPU based; cupti_activity.h at
``cuptiActivityRegisterTimestampCallback``: CLOCK_REALTIME, by linear interpolation). It does not
say how well. So its word is checked by what must be true on the host's clock:

* no sample begins before ``cuptiPmSamplingStart`` is entered;
* the last complete sample ends before ``cuptiPmSamplingStop`` returns, and, as long as that agrees
  with the rest, at most two intervals before it is entered;
* no sample is decoded before it ended.

Each gives one side of an interval for the correction (true time − converted time). Where it holds
zero, CUPTI is believed and the farther side is the error bound; where it does not (a raw GPU clock,
say), its middle is the correction and half its width the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
STEPPED_NS = 1_000_000
"""Readings are 0.5 s apart and the kernel slews at most 500 ppm: more is a clock that was set."""


@dataclass(frozen=True)
class HostReadings:
    """What the sampler read beside the samples; ns of CLOCK_MONOTONIC unless said."""

    clocks: Sequence[Sequence[int]]
    """``(CLOCK_REALTIME, CLOCK_MONOTONIC, error)``, oldest first."""
    started: tuple[int, int]
    """Around ``cuptiPmSamplingStart``."""
    stopped: tuple[int, int]
    """Around ``cuptiPmSamplingStop``."""
    decodes: Sequence[Sequence[int]]
    """``(return of a decode, end of the newest sample decoded by then on CUPTI's clock)``."""


@dataclass(frozen=True)
class Placement:
    """How the samples came onto CLOCK_MONOTONIC."""

    method: Literal["cupti", "bounds", "contradiction"]
    """``cupti``: its conversion agrees with the host; ``bounds``: corrected by ``correction_ns``;
    ``contradiction``: no single correction fits (the clock was set, or drifts)."""
    correction_ns: int
    """What was added to CUPTI's times."""
    error_ns: int | None
    """Sample times are off by at most this; ``None``: not known."""
    low_ns: int
    """Smallest correction that the host's readings allow, relative to CUPTI's times."""
    high_ns: int
    """Greatest one."""


def to_monotonic(realtime_ns: Times, clocks: Sequence[Sequence[int]]) -> tuple[Times, int]:
    """CLOCK_REALTIME → CLOCK_MONOTONIC along ``HostReadings.clocks``, and the error of that, ns."""
    pairs = np.asarray(clocks, dtype=np.int64)
    wall, offset = pairs[:, 0], pairs[:, 0] - pairs[:, 1]
    error = int(pairs[:, 2].max())
    jump = int(np.abs(np.diff(offset)).max(initial=0))
    if jump > STEPPED_NS:
        return realtime_ns - offset[0], error + jump
    # Differences only: 1.8e18 ns as a float64 has steps of 256 ns.
    drift = np.interp(realtime_ns - wall[0], wall - wall[0], offset - offset[0])
    return realtime_ns - offset[0] - np.rint(drift).astype(np.int64), error


def place(
    start_ns: Times, end_ns: Times, interval_ns: int, readings: HostReadings
) -> tuple[Times, Times, Placement]:
    """Put samples onto CLOCK_MONOTONIC.

    Args:
        start_ns: begin of each sample on CUPTI's clock, ascending; at least one.
        end_ns: end of each.
        interval_ns: between two samples, as achieved.

    Returns:
        The same on CLOCK_MONOTONIC, and how that was done.
    """
    start, error = to_monotonic(start_ns, readings.clocks)
    end, _ = to_monotonic(end_ns, readings.clocks)
    decodes = np.asarray(readings.decodes, dtype=np.int64).reshape(-1, 2)
    decoded, _ = to_monotonic(decodes[:, 1], readings.clocks)
    low = readings.started[0] - int(start[0])
    high = min(
        readings.stopped[1] - int(end[-1]),
        int((decodes[:, 0] - decoded).min(initial=np.iinfo(np.int64).max)),
    )
    # Sampling goes on until it is told to stop, but the buffer's last samples may be lost.
    latest = readings.stopped[0] - 2 * interval_ns - int(end[-1])
    if low < latest <= high:
        low = latest
    if low > high + 2 * error:
        return start, end, Placement("contradiction", 0, None, low, high)
    if low - error <= 0 <= high + error:
        bound = max(-low, high) + error
        return start, end, Placement("cupti", 0, bound, low, high)
    middle = (low + high) // 2
    bound = abs(high - low) // 2 + error + 1
    return start + middle, end + middle, Placement("bounds", middle, bound, low, high)
