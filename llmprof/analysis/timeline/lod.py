"""One device's work of a traced round at every level of detail, down to single kernels.

No pyramid of pre-drawn levels: each category has a curve, the time that it has had up to any
moment. Two binary searches a cell then give the exact time of every category in every cell at any
zoom, in O(cells × log kernels), so a frame of ten million kernels costs what one of a hundred does.
Everything here is computed once, off the UI's thread; all times are ns on the axis of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.naming.categories import OTHER
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.sweep import Work
from llmprof.runfile.trace.rows import Ints

AT_END = -1
"""As ``before`` of a gap: the step ended first. As ``after``: it had just begun."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Disjoint, ordered pieces, and how much of them lies before any moment."""

    start_ns: Ints
    end_ns: Ints
    before_ns: Ints
    """Length of all pieces before piece ``i``; one value more than there are pieces."""

    @classmethod
    def of(cls, start_ns: Ints, end_ns: Ints) -> Curve:
        before = np.zeros(len(start_ns) + 1, np.int64)
        np.cumsum(end_ns - start_ns, out=before[1:])
        return cls(start_ns, end_ns, before)

    def upto(self, times_ns: Ints) -> Ints:
        """Time inside pieces before each of ``times_ns``."""
        begun = np.searchsorted(self.start_ns, times_ns, "right")
        if not len(self.start_ns):
            return np.zeros(len(begun), np.int64)
        over = np.maximum(0, self.end_ns[np.maximum(begun, 1) - 1] - times_ns)
        upto: Ints = self.before_ns[begun] - np.where(begun > 0, over, 0)
        return upto

    def between(self, edges_ns: Ints) -> Ints:
        """Time inside pieces between neighbouring edges; one value less than edges."""
        return np.diff(self.upto(edges_ns))


@dataclass(frozen=True)
class Gap:
    """The device waits within one step."""

    start_ns: int
    end_ns: int
    step: int
    after: int
    """Item before it, ``AT_END`` at the step's begin."""
    before: int
    """Item behind it, ``AT_END`` at the step's end."""


@dataclass(frozen=True)
class Spread:
    """All executions of one kernel in the round."""

    sorted_ns: Ints

    def quantile(self, share: float) -> int:
        return int(np.quantile(self.sorted_ns, share, method="nearest"))

    def rank(self, duration_ns: int) -> float:
        """Share of the executions that were not longer, 0–1."""
        return float(np.searchsorted(self.sorted_ns, duration_ns, "right") / len(self.sorted_ns))

    def histogram(self, cells: int) -> tuple[NDArray[np.int64], int, int]:
        """Counts in ``cells`` equal cells from the 0.5 % to the 99.5 % quantile; what lies beyond
        counts in the outer cells."""
        low, high = self.quantile(0.005), self.quantile(0.995)
        inside = np.clip(self.sorted_ns, low, high)
        counts, _ = np.histogram(inside, bins=cells, range=(low, max(high, low + 1)))
        return counts.astype(np.int64), low, high


class LaneWork:
    """Kernels, copies and sets of one round, ordered by start; an item is an index into them."""

    def __init__(
        self,
        work: Work,
        categories: dict[int, str],
        streams: Ints,
        complete_ns: int | None = None,
        device: int = 0,
    ) -> None:
        """``work``: of ``device`` alone; ``streams``: of every row of it; ``complete_ns``: what
        runs later is left out."""
        self.complete_ns = complete_ns
        self.device = device
        self.order = np.argsort(work.start_ns, kind="stable")
        """Item → row of ``work``."""
        rows = np.full(len(work.start_ns), -1, np.int64)
        rows[work.is_kernel] = work.kernel_row
        self.kernel_row = rows[self.order]
        """Item → row of ``KernelRows``; -1 for what is no kernel."""
        self.start_ns = work.start_ns[self.order]
        self.end_ns = work.end_ns[self.order]
        self.label = work.label[self.order]
        self.step = work.step[self.order]
        self.stream = streams[self.order]
        self.names = work.names
        self.categories = tuple(categories.get(i, OTHER) for i in range(len(work.names)))
        self.covered_ns = np.maximum.accumulate(self.end_ns)
        """Up to where the device was busy when the item and all before it had ended."""
        free = np.empty_like(self.covered_ns)
        free[:1], free[1:] = self.start_ns[:1], self.covered_ns[:-1]
        begin = np.maximum(self.start_ns, free)
        there = np.flatnonzero(self.end_ns > begin)
        start, end, label = begin[there], self.end_ns[there], self.label[there]
        self.busy = Curve.of(start, end)
        self.curves = self._by_category(start, end, label)
        """By category; overlapping work counts for what started first, as in the reports."""
        self.streams = tuple(int(s) for s in np.unique(self.stream))
        # Methods of one lane share nothing with another's: a cache each.
        self.stream_curves = lru_cache(maxsize=16)(self._stream_curves)
        self.spread = lru_cache(maxsize=256)(self._spread)

    def __len__(self) -> int:
        return len(self.start_ns)

    def _stream_curves(self, stream: int) -> dict[str, Curve]:
        """The curves of one stream alone."""
        mine = np.flatnonzero(self.stream == stream)
        start, end, label = self.start_ns[mine], self.end_ns[mine], self.label[mine]
        free = np.maximum.accumulate(end)
        start = np.maximum(start, np.concatenate([start[:1], free[:-1]]))
        there = end > start
        return self._by_category(start[there], end[there], label[there])

    def _by_category(self, start: Ints, end: Ints, label: Ints) -> dict[str, Curve]:
        kinds = {name: i for i, name in enumerate(dict.fromkeys(self.categories))}
        kind = np.array([kinds[name] for name in self.categories], np.int64)[label]
        return {
            name: Curve.of(start[mine], end[mine])
            for name, i in kinds.items()
            if len(mine := np.flatnonzero(kind == i))
        }

    def _spread(self, label: int) -> Spread:
        mine = np.flatnonzero(self.label == label)
        return Spread(np.sort(self.end_ns[mine] - self.start_ns[mine]))

    def short_name(self, item: int) -> str:
        return short_name(self.names[int(self.label[item])])

    def category(self, item: int) -> str:
        return self.categories[int(self.label[item])]

    def within(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Items [first, last) that may touch a stretch of time.

        By the running maximum of ends, since a long item may have begun long before.
        """
        first = int(np.searchsorted(self.covered_ns, start_ns, "right"))
        return first, int(np.searchsorted(self.start_ns, end_ns, "left"))

    def at(self, time_ns: int) -> int:
        """The last item that began at or before ``time_ns``; -1 if none did."""
        return int(np.searchsorted(self.start_ns, time_ns, "right")) - 1

    def gaps(self, step: int, start_ns: int, end_ns: int) -> list[Gap]:
        """Where the device waits in step ``step`` from ``start_ns`` to ``end_ns``, in order; none
        where not all of its work is known."""
        if self.complete_ns is not None and end_ns > self.complete_ns:
            return []
        first, last = self.within(start_ns, end_ns)
        starts = np.append(self.start_ns[first:last], end_ns)
        before = self.covered_ns[first - 1] if first else start_ns
        free = np.maximum(np.append([before], self.covered_ns[first:last]), start_ns)
        found = []
        for i in np.flatnonzero(np.minimum(starts, end_ns) > free).tolist():
            after = first + i - 1 if i and free[i] > start_ns else AT_END
            behind = first + i if first + i < last else AT_END
            found.append(Gap(int(free[i]), int(min(starts[i], end_ns)), step, after, behind))
        return found

    def find(self, text: str) -> Ints:
        """Labels whose short or whole name holds ``text``, upper and lower case alike."""
        wanted = text.casefold()
        hits = [
            i
            for i, name in enumerate(self.names)
            if wanted in short_name(name).casefold() or wanted in name.casefold()
        ]
        return np.array(hits, np.int64)

    def next_of(self, labels: Ints, item: int, way: int) -> int | None:
        """The next item with one of ``labels`` behind (``way`` 1) or before (-1); wraps around.

        Looks in growing blocks, so that a frequent kernel is found without a walk over them all.
        """
        size = len(self)
        if not size or not len(labels):
            return None
        position, block, seen = (item + way) % size, 1024, 0
        while seen < size:
            room = min(block, size - seen, size - position if way > 0 else position + 1)
            begin = position if way > 0 else position - room + 1
            hits = np.flatnonzero(np.isin(self.label[begin : begin + room], labels))
            if len(hits):
                return begin + int(hits[0] if way > 0 else hits[-1])
            position = (position + room) % size if way > 0 else (position - room) % size
            seen, block = seen + room, block * 4
        return None
