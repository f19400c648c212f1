"""Kernels that run at the same time: which launches, and how much of a group's time.

A counter sees the sum of what runs. Where two kernels always begin alike, any traffic may be the
one's or the other's. Where their distance varies a little, least squares does divide it, but
wrongly: one that streams slows the other down, by an amount that depends on the distance. (On an
H100 a kernel of 4 MB beside one of 16 MB came out at 3.0 MB, ±0.8. A simulation gives the same,
and no noise, part length or smoothing is the cause.) So launches that ran alone speak for a kernel,
and launches beside others for the sum of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.design import CHUNK, Activity, Cuts, shares

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALONE_NS, ALONE = 500, 0.05
"""A launch is alone up to this overlap, or this share of its duration: a kernel's end and its
successor's begin may overlap by the accuracy of their times."""
SPEAKS = 0.2
"""Of a group's launches: so many have to be alone to speak for it."""
SOME = 0.02
"""Of a group's launches: fewer beside others do not matter."""
FEWEST = 100
STRETCHES = 32_768


def overlapped(start_ns: Ints, end_ns: Ints) -> Ints:
    """Of each launch, the time during which another one runs.

    Args:
        start_ns: ascending.
    """
    if not len(start_ns):
        return np.empty(0, np.int64)
    at, running = _running(start_ns, end_ns)
    length = np.diff(at) * (running[:-1] > 1)
    until = np.concatenate(([0], np.cumsum(length)))
    return np.asarray(
        until[np.searchsorted(at, end_ns)] - until[np.searchsorted(at, start_ns)], np.int64
    )


def _running(start_ns: Ints, end_ns: Ints) -> tuple[Ints, Ints]:
    """Every begin and end in order, and how many launches run from there on."""
    at = np.concatenate((start_ns, end_ns))
    order = np.argsort(at, kind="stable")
    return at[order], np.cumsum(np.where(order < len(start_ns), 1, -1))


def beside_apart(key: Ints, start_ns: Ints, end_ns: Ints) -> Ints:
    """Keys with launches beside others as ``key + keys``, where enough are alone to speak for
    their kernel; ``keys`` is the number of keys.

    Args:
        key: 0 …, of each launch.
        start_ns: ascending.
    """
    keys = int(key.max()) + 1 if len(key) else 0
    beside = overlapped(start_ns, end_ns) > np.maximum(ALONE_NS, ALONE * (end_ns - start_ns))
    count = np.bincount(key, minlength=keys)
    together = np.bincount(key, beside, keys)
    alone = count - together
    apart = (together > SOME * count) & (alone >= np.maximum(SPEAKS * count, FEWEST))
    return np.where(beside & apart[key], key + keys, key)


@dataclass(frozen=True, eq=False)
class Shared:
    """What groups do while others run; (groups,) and (groups, groups)."""

    time_ns: Floats
    """Of all launches of a group."""
    together_ns: Floats
    """[g, h]: while a launch of h ran too."""
    moved: Floats
    """[g, h]: fitted traffic of g, % of the peak × ns, while a launch of h ran too."""


def shared(activity: Activity, cuts: Cuts, value: Floats) -> Shared:
    """From the first ``STRETCHES`` stretches of two launches and more at once.

    Args:
        value: (columns + 1,), throughput of each part, % of the peak.
    """
    many = activity.groups
    together, moved = np.zeros((many, many)), np.zeros((many, many))
    begin, until = _stretches(activity)
    last = until[-1] if len(until) else 0
    inside = activity.start_ns < last
    time = np.bincount(
        activity.group[inside],
        np.minimum(activity.end_ns[inside], last) - activity.start_ns[inside], many,
    )  # fmt: skip
    latest = np.maximum.accumulate(activity.end_ns) if len(begin) else begin
    for low in range(0, len(begin), CHUNK):
        part = slice(low, low + CHUNK)
        x = shares(activity, latest, cuts, begin[part], until[part])
        length = (until[part] - begin[part])[:, None]
        share = np.add.reduceat(x[:, :-1], cuts.first[:-1], axis=1)
        level = np.add.reduceat(x[:, :-1] * value[:-1], cuts.first[:-1], axis=1)
        runs = (share > 0).astype(np.float64)
        together += (runs * length).T @ runs
        moved += (level * length).T @ runs
    return Shared(time.astype(np.float64), together, moved)


def _stretches(activity: Activity) -> tuple[Ints, Ints]:
    """Begins and ends of what two launches and more share, cut wherever one begins or ends."""
    at, running = _running(activity.start_ns, activity.end_ns)
    where = np.flatnonzero((running[:-1] > 1) & (at[1:] > at[:-1]))[:STRETCHES]
    return at[where], at[where + 1]
