"""The collectives of a group as a timeline joins its lanes by: who is waited for, when all move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmprof.analysis.device.sweep import Spans
from llmprof.analysis.ranks.matched.clocks import ClockFit
from llmprof.analysis.ranks.matched.matching import Matched


@dataclass(frozen=True, eq=False)
class Joins:
    """Disjoint stretches in order of time, on the axis of one lane, ns."""

    names: dict[int, str]
    """Device of the lane's engine → ``rank 1 · GPU 1``."""
    waits: dict[int, Spans]
    """Rank → from the first rank's start to this one's, of the collectives that it was last at."""
    transfer: Spans
    """From the last start to the last end: all ranks are in it."""


def joins(
    matched: Matched, ranks: tuple[int, ...], names: dict[int, str], clock: ClockFit | None
) -> Joins:
    """Of one lane.

    Args:
        ranks: number of the rank in each row of ``matched``.
        names: see ``Joins``.
        clock: of the lane's own rank; ``None``: it is the reference.
    """
    begin, last, end = matched.start_ns.min(0), matched.start_ns.max(0), matched.end_ns.max(0)
    # Ranks may begin the next collective before the last one has left this one: by the jitter of
    # their ends, a µs.
    before = np.concatenate([begin[:1], np.maximum.accumulate(end)[:-1]])
    begin = np.maximum(begin, before)
    last = np.maximum(last, begin)
    end = np.maximum(end, last)
    if clock is not None:
        begin, last, end = (clock.to_own(times) for times in (begin, last, end))
    who = matched.start_ns.argmax(0)
    waits = {}
    for row, rank in enumerate(ranks):
        mine = (who == row) & (last > begin)
        if mine.any():
            waits[rank] = begin[mine], last[mine]
    return Joins(names, waits, (last, end))
