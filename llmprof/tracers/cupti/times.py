"""Times of CUPTI's records that cannot be true: counted, left out, said. Needs numpy.

Reported of CUPTI after very many graph records and after a time callback was registered anew:
times that are zero, negative or out of the round, and clocks that go back. The work was done all
the same, so where records are left out the device's idle time is an upper bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmprof.tracers.cupti.decode import Records
from llmprof.tracers.cupti.layout import KERNEL_KINDS, MEMCPY, MEMSET

Array = npt.NDArray[Any]

BACK_NS = 1_000_000
"""A stream runs its work in order of launch. Launches of several threads into one stream may swap
by less than this; a clock that goes back by more is none."""
_PLACE = ("device", "context", "stream")
_GPU_KINDS = {*KERNEL_KINDS, MEMCPY, MEMSET}
AROUND_NS = 1_000_000_000
"""Before and behind a round's marks; a record's clock is not read at the same moment."""


class TimeCheck:
    """Takes records whose times cannot be true out of a trace, buffer by buffer.

    Args:
        low_ns: CUPTI's clock at the begin of the round, ``None``: not known.
        high_ns: and at its end.
    """

    def __init__(self, low_ns: int | None = None, high_ns: int | None = None) -> None:
        self._low_ns, self._high_ns = low_ns, high_ns
        self._backward = _Backward()
        self.untimed = 0
        """Records of GPU work without a time, or with one that is negative or ends too early."""
        self.outside = 0
        self.backward = 0

    def of(self, records: Records) -> Records:
        """The records of the next buffer, without those that are left out."""
        self.untimed += sum(n for kind, n in records.untimed.items() if kind in _GPU_KINDS)
        kept: dict[str, Array] = {}
        for name in ("kernels", "memcpy", "memset"):
            rows = getattr(records, name)
            if self._low_ns is not None and self._high_ns is not None and len(rows):
                good = rows["start"] >= self._low_ns - AROUND_NS
                good &= rows["end"] <= self._high_ns + AROUND_NS
                self.outside += int(np.count_nonzero(~good))
                rows = rows if good.all() else rows[good]
            kept[name] = rows
        good = self._backward.good(kept["kernels"])
        self.backward += int(np.count_nonzero(~good))
        if not good.all():
            kept["kernels"] = kept["kernels"][good]
        return replace(
            records, kernels=kept["kernels"], memcpy=kept["memcpy"], memset=kept["memset"]
        )

    def texts(self) -> list[str]:
        """What was left out and why."""
        said = (
            (self.untimed, "have no valid time (zero, negative, or an end before the start)"),
            (self.outside, "lie a second or more outside of their round"),
            (self.backward, "go back in time against the order of their stream"),
        )
        return [f"{n} records of GPU work {why}: left out" for n, why in said if n]


class _Backward:
    """Finds kernels whose clock went back, over all buffers of a trace.

    Such a kernel was launched later in its stream than another and seems to have run before it had
    ended: started more than ``BACK_NS`` before it, and while that one or one before it ran. Nodes
    of graphs are not judged: branches of a graph share a stream's number.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        """(device, context, stream) → correlation, start and end of the latest kernel."""

    def good(self, kernels: Array) -> Array:
        """Of every row, in the order of the buffers: is its time in order?"""
        good = np.ones(len(kernels), np.bool_)
        if not len(kernels):
            return good
        own = np.flatnonzero((kernels["graph_node"] == 0) & (kernels["graph"] == 0))
        if not len(own):
            return good
        place = np.stack([kernels[name][own].astype(np.int64) for name in _PLACE])
        if (place == place[:, :1]).all():  # one stream: no sort needed to find that out
            places, which = place[:, :1], np.zeros(len(own), np.intp)
        else:
            places, which = np.unique(place, axis=1, return_inverse=True)
        for n in range(places.shape[1]):
            mine = own[which.reshape(-1) == n]
            key = (int(places[0, n]), int(places[1, n]), int(places[2, n]))
            good[mine] = self._in_order(kernels, mine, key)
        return good

    def _in_order(self, kernels: Array, mine: Array, key: tuple[int, int, int]) -> Array:
        correlation = kernels["correlation"][mine].astype(np.int64)
        order = np.argsort(correlation, kind="stable")
        start, end = kernels["start"][mine][order], kernels["end"][mine][order]
        seen = self._latest.get(key, (-1, start[0], start[0]))
        if correlation.min() < seen[0]:
            # Buffers come as they are completed: this one holds older launches too.
            seen = (-1, start[0], start[0])
        before = np.concatenate([[seen[1]], np.maximum.accumulate(start)[:-1]])
        before = np.maximum(before, seen[1])
        ended = np.maximum(np.concatenate([[seen[2]], np.maximum.accumulate(end)[:-1]]), seen[2])
        back = (start < before - BACK_NS) & (end > start) & (start < ended)
        latest = int(np.argmax(start))
        self._latest[key] = max(
            self._latest.get(key, (-1, 0, 0)),
            (int(correlation[order][latest]), int(start[latest]), int(end.max())),
        )
        good = np.ones(len(mine), np.bool_)
        good[order] = ~back
        return good
