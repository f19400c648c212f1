"""Samples × kernels as normal equations, block by block, in bounded memory.

A PM sample is the time-weighted mean of what ran under it. With ``x[i, c]`` the share of sample i
that column c (a part of a kernel group) ran, ``y[i] = sum over c of x[i, c] * throughput[c]``.
Launches of one group do the same work: a launch that took longer moved the same bytes more slowly,
so its time counts as that of one of median length. (On an H100 that made the residual of a 7B model
in fp16 five times smaller, and the bytes of its largest product right to 0.1 % instead of 2.5 %.)
Kernels that overlap add up: each counts in full. The last column is the time without any kernel.

Only ``X'X`` and ``X'y`` of each block of samples are kept. A coarser cut of the kernels merges
columns, so its equations are sums of rows and columns of these: choosing the parts, folds of a
cross-validation and a bootstrap all work on them and never see a sample again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST = 3.0
"""A launch three times as long as usual, or a third, is other work after all."""
CHUNK = 8192
"""Samples whose design matrix is in memory at once: 20 MB with 300 columns. Products of smaller
matrices keep two threads of a BLAS busy with waiting for each other."""


@dataclass(frozen=True, eq=False)
class Activity:
    """What ran on the device, ordered by start; ns on the samples' clock but for its offset."""

    start_ns: Ints
    end_ns: Ints
    group: Ints
    """0 … groups - 1."""
    groups: int

    @cached_property
    def median_ns(self) -> Floats:
        """Median duration of each group, at least 1."""
        duration = self.end_ns - self.start_ns
        order = np.lexsort((duration, self.group))
        many = np.bincount(self.group, minlength=self.groups)
        middle = np.minimum(np.cumsum(many) - many + many // 2, len(order) - 1)
        found = np.where(many > 0, duration[order][middle], 1) if len(order) else np.ones_like(many)
        return np.maximum(found.astype(np.float64), 1.0)


@dataclass(frozen=True, eq=False)
class Equations:
    """Normal equations of B blocks and C columns (parts in group order, idle last)."""

    xx: Floats
    """(B, C, C), in shares of a sample."""
    xy: Floats
    """(B, C)."""
    yy: Floats
    """(B,): sum of squares of the values."""
    y: Floats
    """(B,): sum of the values."""
    count: Ints
    """(B,): samples."""
    others: Floats
    """(C, M): ``X'y`` of M further counters, over all blocks."""
    x: Floats
    """(C,): sum of the shares of each column, over all blocks."""

    def merged(self, column: Ints, size: int) -> Equations:
        """With column c counted as ``column[c]``; ``size`` of them."""
        order = np.argsort(column, kind="stable")
        first = np.searchsorted(column[order], np.arange(size))
        rows = np.add.reduceat(self.xx[:, order], first, axis=1)
        return Equations(
            np.add.reduceat(rows[:, :, order], first, axis=2),
            np.add.reduceat(self.xy[:, order], first, axis=1),
            self.yy, self.y, self.count,
            np.add.reduceat(self.others[order], first, axis=0),
            np.add.reduceat(self.x[order], first),
        )  # fmt: skip

    def total(self, weight: Floats | None = None) -> tuple[Floats, Floats, float, float, float]:
        """xx, xy, yy, y and count over all blocks, each taken ``weight`` times."""
        w = np.ones(len(self.count)) if weight is None else weight
        return (
            np.tensordot(w, self.xx, 1),
            w @ self.xy,
            float(w @ self.yy),
            float(w @ self.y),
            float(w @ self.count),
        )


@dataclass(frozen=True, eq=False)
class Cuts:
    """Parts of each group's kernels, as shares of a kernel's own duration."""

    first: Ints
    """(groups + 1,): first column of each group; the last is the number of columns."""
    low: Floats
    """(columns,): where a part begins, 0-1."""
    high: Floats
    """(columns,): where it ends."""

    @property
    def columns(self) -> int:
        return int(self.first[-1])

    @staticmethod
    def of(edges: Sequence[Floats]) -> Cuts:
        """From each group's edges, 0 and 1 included."""
        many = [len(e) - 1 for e in edges]
        return Cuts(
            np.concatenate(([0], np.cumsum(many))).astype(np.int64),
            np.concatenate([e[:-1] for e in edges]),
            np.concatenate([e[1:] for e in edges]),
        )


def equations(
    activity: Activity,
    cuts: Cuts,
    start_ns: Ints,
    end_ns: Ints,
    value: Floats,
    block: Ints,
    others: Floats | None = None,
    every: int = 1,
) -> Equations:
    """Add up the normal equations.

    Args:
        cuts: where each group's kernels are cut.
        start_ns, end_ns, value: samples in order.
        block: block of each sample, from 0.
        others: (samples, M), further counters.
        every: only each n-th chunk of samples.
    """
    columns, blocks = cuts.columns + 1, int(block.max()) + 1 if len(block) else 0
    xx = np.zeros((blocks, columns, columns))
    xy = np.zeros((blocks, columns))
    more = np.zeros((columns, 0 if others is None else others.shape[1]))
    xs = np.zeros(columns)
    yy, total, count = np.zeros(blocks), np.zeros(blocks), np.zeros(blocks, np.int64)
    latest = np.maximum.accumulate(activity.end_ns) if len(activity.end_ns) else activity.end_ns
    for low in range(0, len(value), CHUNK * every):
        part = slice(low, min(low + CHUNK, len(value)))
        x = shares(activity, latest, cuts, start_ns[part], end_ns[part])
        mine, y = block[part], value[part]
        xs += x.sum(0)
        if others is not None:
            more += x.T @ others[part]
        yy += np.bincount(mine, y * y, blocks)
        total += np.bincount(mine, y, blocks)
        count += np.bincount(mine, minlength=blocks)
        order = np.argsort(mine, kind="stable")
        edges = np.searchsorted(mine[order], np.arange(blocks + 1))
        x, y = x[order], y[order]
        for b in range(blocks):
            rows = slice(int(edges[b]), int(edges[b + 1]))
            xx[b] += x[rows].T @ x[rows]
            xy[b] += y[rows] @ x[rows]
    return Equations(xx, xy, yy, total, count, more, xs)


def shares(activity: Activity, latest: Ints, cuts: Cuts, begin: Ints, until: Ints) -> Floats:
    """Design matrix of some samples: (samples, columns).

    Args:
        latest: running maximum of ``activity.end_ns``.
        begin, until: neighbouring samples, ascending.
    """
    count, columns = len(begin), cuts.columns + 1
    first = int(np.searchsorted(latest, begin[0], "right"))
    last = int(np.searchsorted(activity.start_ns, until[-1], "left"))
    x = np.zeros(count * columns)
    if last > first:
        origin = int(begin[0])
        start = (activity.start_ns[first:last] - origin).astype(np.float64)
        end = (activity.end_ns[first:last] - origin).astype(np.float64)
        group = activity.group[first:last]
        left, right = (begin - origin).astype(np.float64), (until - origin).astype(np.float64)
        many = np.diff(cuts.first)[group]
        kernel = np.repeat(np.arange(last - first), many)
        column = np.arange(len(kernel)) - np.repeat(np.cumsum(many) - many, many)
        column += cuts.first[group][kernel]
        duration = np.maximum(end - start, 1)
        weight = np.clip(activity.median_ns[group] / duration, 1 / MOST, MOST)
        length = (end - start)[kernel]
        _spread(
            x, columns, left, right, start[kernel] + cuts.low[column] * length,
            start[kernel] + cuts.high[column] * length, column,
            weight[kernel],
        )  # fmt: skip
        union_start, union_end = _union(start, end)
        _spread(
            x, columns, left, right, union_start, union_end,
            np.full(len(union_start), columns - 1),
            np.ones(len(union_start)),
        )  # fmt: skip
    found = x.reshape(count, columns) / (until - begin)[:, None]
    found[:, -1] = 1 - found[:, -1]
    return found


def _spread(
    x: Floats,
    columns: int,
    left: Floats,
    right: Floats,
    start: Floats,
    end: Floats,
    column: Ints,
    weight: Floats,
) -> None:
    """Add each piece's time, times its weight, to the samples that it lies under."""
    at = np.maximum(np.searchsorted(left, start, "right") - 1, 0)
    while len(at):
        time = np.minimum(right[at], end) - np.maximum(left[at], start)
        there = time > 0
        x += np.bincount(at[there] * columns + column[there], (time * weight)[there], len(x))
        more = np.flatnonzero((end > right[at]) & (at + 1 < len(left)))
        at, start, end = at[more] + 1, start[more], end[more]
        column, weight = column[more], weight[more]


def _union(start: Floats, end: Floats) -> tuple[Floats, Floats]:
    until = np.maximum.accumulate(end)
    first = np.concatenate(([True], start[1:] > until[:-1]))
    last = np.concatenate((np.flatnonzero(first)[1:] - 1, [len(start) - 1]))
    return start[first], until[last]
