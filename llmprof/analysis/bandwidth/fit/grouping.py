"""Which executions are taken as one kernel: name, launch shape, and place among their neighbours.

One name and shape can do different work: an output and a down projection may be the same kernel
with the same grid, for matrices of different sizes. What runs before tells them apart in every
layer, so a group is split by its predecessor where the durations differ; where only the traffic
may differ, the fit decides (``parent``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.streams import beside_apart

Ints = NDArray[np.int64]

MIN_SHARE = 0.01
"""Of all kernel time: a smaller group is not split."""
MIN_CONTEXT = 0.1
"""Of a group's executions: a rarer predecessor joins the one whose durations are nearest."""
MAX_CONTEXTS = 4
APART = 1.15
"""Ratio of median durations from which two predecessors are different work for certain: the
position in a step alone moves the median of a 20 µs kernel by some 3 %."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """One entry a kernel in ``group``, one a group in the others."""

    group: Ints
    base: Ints
    """Group → key (name and shape)."""
    parent: Ints
    """Group → the group that it may be merged into again; itself where it stands alone."""
    before: tuple[int | None, ...]
    """Group → key of what runs before it, where the group was split by that."""
    beside: tuple[bool, ...]
    """Group → does it hold launches beside others, of a kernel that has launches alone too."""


def grouped(key: Ints, start_ns: Ints, end_ns: Ints) -> Grouping:
    """Groups of executions, ordered by start.

    Args:
        key: 0 …, equal for equal names and launch shapes.
    """
    keys = int(key.max()) + 1 if len(key) else 0
    apart = beside_apart(key, start_ns, end_ns)
    found = split(apart, end_ns - start_ns, key)
    beside = tuple((found.base >= keys).tolist())
    return replace(found, base=np.where(beside, found.base - keys, found.base), beside=beside)


def split(key: Ints, duration_ns: Ints, kernel: Ints) -> Grouping:
    """By key, and by the kernel before.

    Args:
        key: 0 …, of each execution, in order of start.
        kernel: of each, 0 …; executions of one kernel may have several keys.
    """
    keys = int(key.max()) + 1 if len(key) else 0
    total = np.bincount(key, duration_ns, keys)
    previous = np.concatenate((kernel[-1:], kernel[:-1]))
    group = np.empty_like(key)
    base: list[int] = []
    parent: list[int] = []
    before: list[int | None] = []
    for number in range(keys):
        mine = np.flatnonzero(key == number)
        if not len(mine):
            continue
        first = len(base)
        contexts = _contexts(previous[mine], duration_ns[mine])
        if total[number] < MIN_SHARE * total.sum() or len(contexts) < 2:
            group[mine] = first
            base.append(number)
            parent.append(first)
            before.append(None)
            continue
        medians = {c: float(np.median(duration_ns[mine][previous[mine] == c])) for c in contexts}
        ordered = sorted(contexts, key=lambda c: medians[c])
        heads: list[int] = []
        for at, context in enumerate(ordered):
            apart = at == 0 or medians[context] > APART * medians[ordered[at - 1]]
            heads.append(first + at if apart else heads[-1])
            base.append(number)
            before.append(context)
        parent += heads
        length = np.array([medians[c] for c in ordered])
        place = np.abs(duration_ns[mine][:, None] - length).argmin(1)
        for at, context in enumerate(ordered):
            place[previous[mine] == context] = at
        group[mine] = first + place
    return Grouping(
        group, np.array(base, np.int64), np.array(parent, np.int64), tuple(before),
        (False,) * len(base),
    )  # fmt: skip


def _contexts(previous: Ints, duration_ns: Ints) -> list[int]:
    found, count = np.unique(previous, return_counts=True)
    often = found[count >= MIN_CONTEXT * len(previous)]
    return [int(c) for c in often] if len(often) <= MAX_CONTEXTS else []
