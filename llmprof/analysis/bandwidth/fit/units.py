"""What is reported: a kernel group of its own, or several that samples cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.streams import Shared

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

VAGUE_PCT = 12.0
"""Half of a 95 % interval, % of peak, from which a value alone means little."""
TRADED = -0.5
"""Correlation of two estimates over the bootstrap below which they are one sum, shared out at
random."""
HOPELESS_PCT = 30.0
STAKE, STAKE_PCT = 0.1, 1.0
"""Of a unit's mean, and % of the peak: traffic in time shared with others from which its own value
says little."""
HIDDEN = 0.5
"""Share of a unit's time from which it runs beside others."""
Z95 = 1.96
SAME_SAMPLES = "these kernels lie under the same samples: only what they have together is known"
SAME_TIME = (
    "these kernels run at the same time: only what they have together is known, as a mean over"
    " the sum of their times"
)
UNDER_ANOTHER = "it runs while a longer kernel does: their traffic cannot be told apart"


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
    beside: Shared,
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
        beside: what groups do while others run.
    """
    streams, hidden = _Beside(beside, means), set[int]()
    members = [[g] for g in range(len(means)) if share[g] > 0]
    why = [""] * len(members)
    while True:
        weights = [share[m] / share[m].sum() for m in members]
        columns = list(zip(members, weights, strict=True))
        drawn = np.stack([draws[:, m] @ w for m, w in columns], 1)
        half = Z95 * drawn.std(0)
        off = [np.abs(near[:, m] @ w - means[m] @ w).max(initial=0) for m, w in columns]
        rest = [float(np.hypot.reduce(misfit[m] * w)) for m, w in columns]
        stake = [streams.at_stake(m)[0] for m in members]
        reach = np.sqrt(half**2 + np.array(off) ** 2 + np.array(rest) ** 2 + np.array(stake) ** 2)
        pair, said = streams.pair(members, weights, hidden), SAME_TIME
        if pair is None:
            pair, said = _traded(drawn, half), SAME_SAMPLES
        if pair is None:
            break
        members[pair[0]] += members[pair[1]]
        why[pair[0]] = said
        del members[pair[1]], why[pair[1]]
    units = []
    for at, (groups, w) in enumerate(columns):
        mean, around = float(means[groups] @ w), float(reach[at])
        several, vague = len(groups) > 1, around > HOPELESS_PCT or at in hidden
        note = why[at]
        if at in hidden:
            note = UNDER_ANOTHER
        elif vague:
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


class _Beside:
    """What units do while others run."""

    def __init__(self, found: Shared, means: Floats) -> None:
        self._found, self._means = found, means

    def at_stake(self, unit: list[int]) -> tuple[float, float]:
        """% of the peak over the unit's time that may be others' traffic, or theirs that may be
        its own; and the share of its time that is shared."""
        f = self._found
        rest = np.setdiff1d(np.arange(len(f.time_ns)), unit)
        time = max(float(f.time_ns[unit].sum()), 1.0)
        own, others = f.moved[unit][:, rest].sum(), f.moved[rest][:, unit].sum()
        return max(own, others) / time, min(1.0, f.together_ns[unit][:, rest].sum() / time)

    def damaged(self, unit: list[int], weight: Floats) -> bool:
        stake, _ = self.at_stake(unit)
        return stake > max(STAKE * float(self._means[unit] @ weight), STAKE_PCT)

    def pair(
        self, members: list[list[int]], weights: list[Floats], hidden: set[int]
    ) -> tuple[int, int] | None:
        """Two units of which only the sum is known. ``hidden`` takes those that lie under another
        whose own value is hardly touched."""
        hidden.clear()
        together = self._found.together_ns
        for at, unit in enumerate(members):
            if not self.damaged(unit, weights[at]) or self.at_stake(unit)[1] < HIDDEN:
                continue
            times = [float(together[unit][:, other].sum()) for other in members]
            times[at] = 0.0
            partner = int(np.argmax(times))
            if self.damaged(members[partner], weights[partner]):
                return min(at, partner), max(at, partner)
            hidden.add(at)
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
