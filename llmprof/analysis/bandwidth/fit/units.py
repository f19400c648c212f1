"""What is reported: a kernel group of its own, or several that samples cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

VAGUE_PCT = 12.0
"""Half of a 95 % interval, % of peak, from which a value alone means little."""
TRADED = -0.5
"""Correlation of two estimates over the bootstrap below which they are one sum, shared out at
random."""
HOPELESS_PCT = 30.0
BESIDE = 0.5
"""Share of the shorter one's time from which two groups run at the same time."""
BESIDE_PCT = 5.0
"""Half of a 95 % interval, % of peak, from which what concurrent kernels share out is unknown. On
an H100 a kernel on a second stream was known to 0.4 % where launches began at varied distances;
planted ones that always begin alike are off by 10 %."""
Z95 = 1.96
SAME_SAMPLES = "these kernels lie under the same samples: only what they have together is known"
SAME_TIME = (
    "these kernels run at the same time: only what they have together is known, as a mean over"
    " the sum of their times"
)


@dataclass(frozen=True)
class Unit:
    """DRAM throughput in % of the counter's peak, over the time of its groups."""

    groups: tuple[int, ...]
    dram_pct: float | None
    """``None``: ``note`` says why."""
    low_pct: float | None
    """95 % interval: bootstrap over blocks of samples, choice of parts, clock, misfit."""
    high_pct: float | None
    profile_pct: tuple[float, ...]
    """Along the kernel, equal parts; one value for several groups."""
    further_pct: tuple[float, ...]
    """The further counters; NaN where one was not counted."""
    note: str


def separable(
    means: Floats,
    draws: Floats,
    near: Floats,
    misfit: Floats,
    share: Floats,
    profiles: Sequence[Floats],
    further: Floats,
    beside: Floats,
) -> list[Unit]:
    """Groups as units.

    Args:
        means: (groups,).
        draws: (draws, groups), of a bootstrap.
        near: (N, groups): means of other part lengths and moved clocks.
        misfit: (groups,): half of a 95 % interval for what the model leaves unexplained.
        share: (groups,): time under the samples; a group without any is left out.
        profiles: parts of each.
        further: (groups, M).
        beside: (groups, groups), ``concurrent``.
    """
    members = [[g] for g in range(len(means)) if share[g] > 0]
    why = [""] * len(members)
    while True:
        weights = [share[m] / share[m].sum() for m in members]
        columns = list(zip(members, weights, strict=True))
        drawn = np.stack([draws[:, m] @ w for m, w in columns], 1)
        half = Z95 * drawn.std(0)
        off = [np.abs(near[:, m] @ w - means[m] @ w).max(initial=0) for m, w in columns]
        rest = [float(np.hypot.reduce(misfit[m] * w)) for m, w in columns]
        reach = np.sqrt(half**2 + np.array(off) ** 2 + np.array(rest) ** 2)
        pair, said = _traded(drawn, half), SAME_SAMPLES
        if pair is None:
            pair, said = _concurrent(members, beside, reach), SAME_TIME
        if pair is None:
            break
        members[pair[0]] += members[pair[1]]
        why[pair[0]] = said
        del members[pair[1]], why[pair[1]]
    units = []
    for at, (groups, w) in enumerate(columns):
        mean, around = float(means[groups] @ w), float(reach[at])
        several, vague = len(groups) > 1, around > HOPELESS_PCT
        note = why[at]
        if vague:
            note = f"known to ±{around:.0f} % of the peak only: too few samples tell it apart"
        units.append(
            Unit(
                groups=tuple(groups),
                dram_pct=None if vague else mean,
                low_pct=None if vague else max(0.0, mean - around),
                high_pct=None if vague else mean + around,
                profile_pct=() if vague or several else tuple(map(float, profiles[groups[0]])),
                further_pct=tuple(float(v) for v in w @ further[groups]),
                note=note,
            )
        )
    return units


def concurrent(start_ns: Ints, end_ns: Ints, group: Ints, groups: int) -> Floats:
    """(groups, groups): time that two groups run at once, over the time of the shorter one.

    Args:
        start_ns: ascending.
    """
    both = np.zeros(groups * groups)
    at, ahead = np.arange(len(start_ns)), 0
    while len(at):
        ahead += 1
        at = at[at + ahead < len(start_ns)]
        # Starts ascend: what does not reach the n-th kernel behind it reaches none after that.
        at = at[start_ns[at + ahead] < end_ns[at]]
        then = at + ahead
        time = np.minimum(end_ns[at], end_ns[then]) - start_ns[then]
        both += np.bincount(group[at] * groups + group[then], time, len(both))
    square = both.reshape(groups, groups)
    square = square + square.T
    np.fill_diagonal(square, 0)
    total = np.bincount(group, end_ns - start_ns, groups)
    shorter = np.minimum(total[:, None], total[None, :])
    return np.asarray(square / np.maximum(shorter, 1), np.float64)


def _concurrent(members: list[list[int]], beside: Floats, reach: Floats) -> tuple[int, int] | None:
    """The vaguest unit that runs while another does, and that one."""
    for at in np.argsort(-reach).tolist():
        if reach[at] <= BESIDE_PCT:
            return None
        most = [0.0 if u == at else float(beside[np.ix_(members[at], members[u])].max())
                for u in range(len(members))]  # fmt: skip
        other = int(np.argmax(most))
        if most[other] >= BESIDE:
            return min(at, other), max(at, other)
    return None


def _traded(drawn: Floats, half: Floats) -> tuple[int, int] | None:
    """The vaguest estimate that has one to which it trades its traffic, and that one."""
    for at in np.argsort(-half).tolist():
        if half[at] <= VAGUE_PCT:
            return None
        moved = drawn - drawn.mean(0)
        size = np.sqrt((moved**2).sum(0))
        there = size > 0
        if not there[at]:
            continue
        cross = np.zeros(len(half))
        cross[there] = moved[:, there].T @ moved[:, at] / (size[there] * size[at])
        partner = int(cross.argmin())
        if cross[partner] < TRADED:
            return min(at, partner), max(at, partner)
    return None
