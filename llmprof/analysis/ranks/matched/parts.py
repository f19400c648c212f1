"""Every collective in two parts that add up: waiting for the last rank, and transfer.

In an all-reduce and its like every rank waits for the last one to start. In others (a broadcast, a
send) some ranks wait for nobody: one that ended before another started did not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.ranks.matched.matching import Matched
from llmprof.analysis.ranks.matched.operations import WAITS_FOR_ALL, operation
from llmprof.runfile.trace.rows import Ints


@dataclass(frozen=True, eq=False)
class Parts:
    """Shape (ranks, collectives), ns; ``wait + transfer`` is the kernel's duration."""

    wait_ns: Ints
    """From the rank's own start to the last rank's start."""
    transfer_ns: Ints
    """From there to the rank's own end."""
    late_ns: Ints
    """Of the rank that started last: how long all others waited for it alone (to the last start
    from the one before it); 0 of the others. What the group would gain had it been on time. Of
    collectives at the same time on several streams each moment is one's only."""
    whole_ns: Ints
    """Shape (collectives,): from the last start to the last end: the transfer of the group."""

    @property
    def critical(self) -> NDArray[np.intp]:
        """Of each collective, the rank (row) that started last."""
        found: NDArray[np.intp] = self.late_ns.argmax(0)
        return found


def split(matched: Matched) -> Parts:
    """Of matched collectives on one axis."""
    start, end = matched.start_ns, matched.end_ns
    duration = np.maximum(end - start, 0)
    ranked = np.sort(start, 0)
    last, second = ranked[-1], ranked[-2]
    row = start.argmax(0)
    sure = [operation(key.key).kind in WAITS_FOR_ALL for key in matched.keys]
    waits_for_all = np.array(sure, bool)[matched.key]
    until = np.where(waits_for_all, last, _seen_starts(start, end))
    wait = np.clip(until - start, 0, duration)
    # Who ended before the last one started did not wait for it.
    others = end.copy()
    others[row, np.arange(end.shape[1])] = np.iinfo(np.int64).max
    waited = (waits_for_all | (others.min(0) >= last)) & ~matched.alone
    late = np.zeros_like(start)
    wait[:, matched.alone] = 0
    late[row, np.arange(start.shape[1])] = _apart(second, np.where(waited, last, second))
    return Parts(wait, duration - wait, late, np.maximum(end.max(0) - last, 0))


def _seen_starts(start: Ints, end: Ints) -> Ints:
    """Of each rank and collective the last start of any rank before it ended itself."""
    found = start.copy()
    for other in start:
        found = np.where(other < end, np.maximum(found, other), found)
    return found


def _apart(begin: Ints, stop: Ints) -> Ints:
    """Length of each stretch without what those that began before it cover."""
    order = np.argsort(begin, kind="stable")
    covered = np.maximum.accumulate(stop[order])
    first = begin[order].copy()
    first[1:] = np.maximum(first[1:], covered[:-1])
    found = np.empty_like(begin)
    found[order] = np.maximum(stop[order] - first, 0)
    return found
