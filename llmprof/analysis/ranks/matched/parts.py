"""Every collective in two parts that add up: waiting for the last rank, and transfer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.ranks.matched.matching import Matched
from llmprof.runfile.trace.rows import Ints


@dataclass(frozen=True, eq=False)
class Parts:
    """Shape (ranks, collectives), ns; ``wait + transfer`` is the kernel's duration."""

    wait_ns: Ints
    """From the rank's own start to the last rank's start."""
    transfer_ns: Ints
    """From the last start to the rank's own end."""
    late_ns: Ints
    """Of the rank that started last: how long all others waited for it alone (to the last start
    from the one before it); 0 of the others. What the group would gain had it been on time."""
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
    last = ranked[-1]
    wait = np.clip(last - start, 0, duration)
    late = np.zeros_like(start)
    row = start.argmax(0)
    late[row, np.arange(start.shape[1])] = last - ranked[-2]
    wait[:, matched.alone] = late[:, matched.alone] = 0
    return Parts(wait, duration - wait, late, np.maximum(end.max(0) - last, 0))
