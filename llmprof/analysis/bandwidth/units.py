"""What is reported: a kernel group of its own, or several that samples cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

VAGUE_PCT = 12.0
"""Half of a 95 % interval, % of peak, from which a value alone means little."""
TRADED = -0.5
"""Correlation of two estimates over the bootstrap below which they are one sum, shared out at
random."""
HOPELESS_PCT = 30.0
Z95 = 1.96


@dataclass(frozen=True)
class Unit:
    """DRAM throughput in % of the counter's peak, over the time of its groups."""

    groups: tuple[int, ...]
    dram_pct: float | None
    """``None``: ``note`` says why."""
    low_pct: float | None
    """95 % interval, of the bootstrap over blocks of samples and of the choice of parts."""
    high_pct: float | None
    profile_pct: tuple[float, ...]
    """Along the kernel, equal parts; one value for several groups."""
    further_pct: tuple[float, ...]
    """The further counters; NaN where one was not counted."""
    note: str


def separable(
    means: Floats,
    draws: Floats,
    spread: Floats,
    share: Floats,
    profiles: Sequence[Floats],
    further: Floats,
) -> list[Unit]:
    """Groups as units.

    Args:
        means: (groups,).
        draws: (draws, groups), of a bootstrap.
        spread: (groups,): how far other part lengths lie off.
        share: (groups,): time under the samples; a group without any is left out.
        profiles: parts of each.
        further: (groups, M).
    """
    members = [[g] for g in range(len(means)) if share[g] > 0]
    while True:
        weights = [share[m] / share[m].sum() for m in members]
        drawn = np.stack([draws[:, m] @ w for m, w in zip(members, weights, strict=True)], 1)
        half = Z95 * drawn.std(0)
        pair = _traded(drawn, half)
        if pair is None:
            break
        members[pair[0]] += members[pair[1]]
        del members[pair[1]]
    units = []
    for at, groups in enumerate(members):
        w = weights[at]
        mean = float(means[groups] @ w)
        reach = float(np.hypot(half[at], spread[groups] @ w))
        several = len(groups) > 1
        note = ""
        if several:
            note = "these kernels lie under the same samples: only what they have together is known"
        if reach > HOPELESS_PCT:
            note = f"known to ±{reach:.0f} % of the peak only: too few samples tell it apart"
        vague = reach > HOPELESS_PCT
        units.append(
            Unit(
                groups=tuple(groups),
                dram_pct=None if vague else mean,
                low_pct=None if vague else max(0.0, mean - reach),
                high_pct=None if vague else mean + reach,
                profile_pct=() if vague or several else tuple(map(float, profiles[groups[0]])),
                further_pct=tuple(float(v) for v in w @ further[groups]),
                note=note,
            )
        )
    return units


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
