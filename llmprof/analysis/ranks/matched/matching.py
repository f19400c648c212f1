"""The k-th collective of one rank is the k-th of the others: by name and order, checked by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.ranks.matched.clocks import ClockFit, fit
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.operations import (
    WAITS_FOR_ALL,
    WAITS_FOR_NONE,
    Sort,
    operation,
)
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints

SHIFTS = 64
"""A recording may begin in the middle of a step: so many collectives more than the difference of
the counts are tried, and at least those of ``STEPS`` steps."""
STEPS = 3
MUCH = 0.4
"""Clocks that drift are half as far apart over half of the pairs."""
LOOKED_AT = 4096
"""Of the pairs of a shift, those in the middle: all of a million would take 10 ms a shift."""
LEAST_SHARE = 0.5
"""Of the shorter list that must match, or the lists are not of one group."""


@dataclass(frozen=True, eq=False)
class Matched:
    """Collectives that all ranks took part in, ordered by their end; shape (ranks, count)."""

    index: Ints
    """Which of ``Member.collectives`` each is."""
    start_ns: Ints
    """On the reference rank's axis."""
    end_ns: Ints
    key: Ints
    """Shape (count,): index into ``keys``."""
    keys: tuple[Sort, ...]
    clocks: tuple[ClockFit | None, ...]
    """Of every rank; ``None`` is the reference itself."""
    unmatched: tuple[int, ...]
    """Collectives of every rank that another one lacks."""

    @property
    def count(self) -> int:
        return int(self.index.shape[1])

    @property
    def alone(self) -> NDArray[np.bool_]:
        """Shape (count,): ranks do not meet in it."""
        free = [n for n, key in enumerate(self.keys) if operation(key.key).kind in WAITS_FOR_NONE]
        return np.isin(self.key, free)


def match(members: Sequence[Member], same_host: bool) -> Matched | Unavailable:
    """All ranks against the first one, which is the reference."""
    base = members[0].collectives
    if not len(base):
        return Unavailable(members[0].no_collective)
    partner = np.full((len(members), len(base)), -1, np.int64)
    partner[0] = np.arange(len(base))
    clocks: list[ClockFit | None] = [None]
    for row, member in enumerate(members[1:], 1):
        found = _against(members[0], member, same_host)
        if isinstance(found, Unavailable):
            return found
        partner[row], clock = found
        clocks.append(clock)
    shared = np.flatnonzero((partner >= 0).all(0))
    if not len(shared):
        return Unavailable("no collective is common to all ranks")
    index = partner[:, shared]
    order = np.argsort(base.end_ns[index[0]], kind="stable")
    index = index[:, order]
    starts, ends = [], []
    for member, own_index, own_clock in zip(members, index, clocks, strict=True):
        start = member.collectives.start_ns[own_index]
        end = member.collectives.end_ns[own_index]
        starts.append(start if own_clock is None else own_clock.to_reference(start))
        ends.append(end if own_clock is None else own_clock.to_reference(end))
    return Matched(
        index=index,
        start_ns=np.stack(starts),
        end_ns=np.stack(ends),
        key=base.key[index[0]],
        keys=base.keys,
        clocks=tuple(clocks),
        unmatched=tuple(len(m.collectives) - index.shape[1] for m in members),
    )


def _against(
    reference: Member, other: Member, same_host: bool
) -> tuple[Ints, ClockFit] | Unavailable:
    """For every collective of the reference its partner, or -1; and the clock."""
    base, mine = reference.collectives, other.collectives
    partner = np.full(len(base), -1, np.int64)
    steps = max(1, max(len(reference.bounds_ns), len(other.bounds_ns)) - 1)
    ends, differences = mine.end_ns, None
    shared = [number for number, key in enumerate(base.keys) if key in mine.keys]
    # Of those that ranks meet in the most frequent one says where two clocks are.
    meet = [operation(key.key).kind not in WAITS_FOR_NONE for key in base.keys]
    shared.sort(key=lambda n: (not meet[n], -int(np.count_nonzero(base.key == n))))
    for number in shared:
        ours = np.flatnonzero(base.key == number)
        theirs = np.flatnonzero(mine.key == mine.keys.index(base.keys[number]))
        one_clock = same_host or differences is not None
        reach = max(SHIFTS, STEPS * -(-len(ours) // steps))
        shift = _shift(base.end_ns[ours], ends[theirs], one_clock, reach)
        first = max(0, shift)
        last = min(len(ours), len(theirs) + shift)
        if last <= first:
            continue
        partner[ours[first:last]] = theirs[first - shift : last - shift]
        if not one_clock:
            at = ends[theirs[first - shift : last - shift]]
            differences = at - base.end_ns[ours[first:last]]
            order = np.argsort(at, kind="stable")
            offset = np.interp(ends - at[0], at[order] - at[0], differences[order])
            ends = ends - np.rint(offset).astype(np.int64)
    both = np.flatnonzero(partner >= 0)
    if len(both) < LEAST_SHARE * min(len(base), len(mine)):
        return Unavailable(
            f"{len(both)} of {len(base)} collectives of {reference.name} are found on {other.name}:"
            " they are not of one group"
        )
    kinds = np.array([operation(key.key).kind for key in base.keys], object)[base.key[both]]
    sure = both[np.isin(kinds, list(WAITS_FOR_ALL))]
    chosen = sure if len(sure) else both[~np.isin(kinds, list(WAITS_FOR_NONE))]
    clock = fit(
        other.rank,
        (base.start_ns[chosen], base.end_ns[chosen]),
        (mine.start_ns[partner[chosen]], mine.end_ns[partner[chosen]]),
        bool(len(sure)),
        same_host,
    )
    return clock if isinstance(clock, Unavailable) else (partner, clock)


def _shift(ours: Ints, theirs: Ints, one_clock: bool, reach: int) -> int:
    """So many of ours come before the first of theirs, so that the ends agree best; up to ``reach``
    more than one list is longer than the other.

    On one clock the ends themselves must agree; else their differences must all be alike. Then few
    pairs, or one step against the next, may be alike by chance: what leaves out more of them than
    it must has to be alike by much more.
    """
    spare = len(ours) - len(theirs)
    if one_clock and spare == 0 and _spread(ours, theirs, True) <= _AGREE_NS:
        return 0
    least, most = min(0, spare), max(0, spare)
    best, found = None, 0
    for shift in range(least - reach, most + reach + 1):
        first, last = max(0, shift), min(len(ours), len(theirs) + shift)
        if last - first < max(1, min(len(ours), len(theirs)) // 2):
            continue
        score = _spread(ours[first:last], theirs[first - shift : last - shift], one_clock)
        if not one_clock and not least <= shift <= most:
            score /= MUCH
        if best is None or score < best or (score == best and abs(shift) < abs(found)):
            best, found = score, shift
    return found


_AGREE_NS = 5_000
"""Ends that are this close on one clock need no other partner to be tried. On two clocks the next
step's ends may be as close: its length is nearly the same."""


def _spread(ours: Ints, theirs: Ints, one_clock: bool) -> float:
    begin = max(0, len(ours) - LOOKED_AT) // 2
    middle = slice(begin, begin + LOOKED_AT)
    difference = theirs[middle] - ours[middle]
    if one_clock:
        return float(np.median(np.abs(difference)))
    # The mean: all-reduces of a layer are alike, and steps may differ in one place only.
    return float(np.abs(difference - np.median(difference)).mean())
