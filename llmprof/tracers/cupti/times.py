"""Times of CUPTI's records that cannot be true: counted, left out, said. Needs numpy.

Reported of CUPTI after very many graph records and after a time callback was registered anew:
times that are zero, negative or out of the round, and clocks that go back. The work was done all
the same, so where records are left out the device's idle time is an upper bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmprof.tracers.cupti.decode import Records
from llmprof.tracers.cupti.layout import KERNEL_KINDS, MEMCPY, MEMSET

Array = npt.NDArray[Any]

BACK_NS = 1_000_000
"""A stream runs its work in order of launch. Launches of several threads into one stream may swap
by less than this; a clock that goes back by more is none."""
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
        if good is not None:
            self.backward += int(np.count_nonzero(~good))
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


class _Place(NamedTuple):
    """A stream."""

    device: int
    context: int
    stream: int


class _Backward:
    """Finds kernels whose clock went back, over all buffers of a trace.

    Such a kernel was launched later in its stream than another and seems to have run before it had
    ended: started more than ``BACK_NS`` before it, and while that one or one before it ran. Nodes
    of graphs are not judged: branches of a graph share a stream's number.
    """

    def __init__(self) -> None:
        self._latest: dict[_Place, tuple[int, int, int]] = {}
        """Correlation, start and end of the latest kernel of each stream."""

    def good(self, kernels: Array) -> Array | None:
        """Of every row, in the order of the buffers: is its time in order? ``None``: all are."""
        own: Array | slice = slice(None)
        launched = (kernels["graph_node"] == 0) & (kernels["graph"] == 0)
        if not launched.all():
            own = np.flatnonzero(launched)
        place = [kernels[name][own] for name in _Place._fields]
        if not len(place[0]):
            return None
        if all((column == column[0]).all() for column in place):
            # One stream: no sort needed to find that out.
            groups = [(own, _Place(*(int(column[0]) for column in place)))]
        else:
            places, which = np.unique(np.stack(place), axis=1, return_inverse=True)
            all_own = np.arange(len(kernels))[own]
            groups = [
                (all_own[which.reshape(-1) == n], _Place(*places[:, n].tolist()))
                for n in range(places.shape[1])
            ]
        good = None
        for mine, key in groups:
            in_order = self._in_order(kernels, mine, key)
            if in_order is not None:
                good = np.ones(len(kernels), np.bool_) if good is None else good
                good[mine] = in_order
        return good

    def _in_order(self, kernels: Array, mine: Array | slice, key: _Place) -> Array | None:
        """As ``good``, of the kernels of one stream."""
        correlation = kernels["correlation"][mine]
        start, end = kernels["start"][mine], kernels["end"][mine]
        order = None
        if not (correlation[1:] >= correlation[:-1]).all():
            order = np.argsort(correlation, kind="stable")
            correlation, start, end = correlation[order], start[order], end[order]
        seen = self._latest.get(key, (-1, int(start[0]), int(start[0])))
        if correlation[0] < seen[0]:
            # Buffers come as they are completed: this one holds older launches too.
            seen = (-1, int(start[0]), int(start[0]))
        latest = len(start) - 1
        back = None
        if start[0] < seen[1] - BACK_NS or not (start[1:] >= start[:-1]).all():
            latest = int(np.argmax(start))
            back = _back(start, end, seen)
        known = self._latest.get(key, (-1, 0, 0))
        self._latest[key] = max(
            known, (int(correlation[latest]), int(start[latest]), int(end.max()))
        )
        if back is None or not back.any():
            return None
        good = np.ones(len(start), np.bool_)
        good[slice(None) if order is None else order] = ~back
        return good


def _back(start: Array, end: Array, seen: tuple[int, int, int]) -> Array:
    """Kernels in the order of their launches that ran before one that was launched earlier."""
    before = np.concatenate([[seen[1]], np.maximum.accumulate(start)[:-1]])
    before = np.maximum(before, seen[1])
    ended = np.maximum(np.concatenate([[seen[2]], np.maximum.accumulate(end)[:-1]]), seen[2])
    back: Array = (start < before - BACK_NS) & (end > start) & (start < ended)
    return back
