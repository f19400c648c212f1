"""What repeats in a stretch of device work, from layers up to whole requests.

A symbol that comes back after about the same number of rows each time is an anchor of something
that repeats. Symbols of one distance and one count anchor the same thing: a level. A decode step
is the level that covers the time, has layers inside, and sends a token to the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llmprof.analysis.steps.events import Events, trigrams, with_grid
from llmprof.runfile.trace.rows import Ints

LEAST_REPEATS = 3
"""Distances; so at least four occurrences of an anchor in a stretch that is searched."""
LEAST_COVERAGE = 0.15
LEAST_SCORE = 0.3
MANY = 16
"""Steps in a request, at least; an iteration of speculative decoding holds fewer forwards."""
NEAR = 0.9
"""A level with this share of the best score is as good; of those the finest counts, since every
second, fourth … step repeats as well as every one."""

EXPLAINED = 0.6
"""Of the time; where no level explains more, several programs may have run."""
ALL_ALONG = 0.85
"""Of the time from its first to its last occurrence, that a level of one of them covers."""
TURNS = 0.3
"""With this share of the best score a level that something says to be steps is taken before one
that nothing says it of."""


@dataclass(frozen=True)
class Anchor:
    """A symbol that comes back regularly."""

    alphabet: str
    """``tag``, ``name``, ``grid``, ``trigram`` or ``node``."""
    symbol: int
    first: int
    """Its first row in the stretch."""
    count: int
    regular: float
    """Share of its distances within 0.6–1.5 of their median."""
    coverage: float
    """Share of the stretch's time that regular distances span."""
    extent: float
    """Share of the stretch's time from its first to its last row."""


@dataclass
class Level:
    """Anchors with one distance."""

    period: float
    """Median distance in rows."""
    count: int
    coverage: float
    regular: float
    extent: float
    anchors: list[Anchor] = field(default_factory=list)
    score: float = 0.0
    token_copy: bool = False
    sampling: bool = False
    embedding: bool = False
    layered: bool = False
    """Something finer repeats inside."""

    @property
    def marked(self) -> bool:
        """Does anything say that a token comes out of it?"""
        return self.token_copy or self.sampling


def find_levels(events: Events, first: int, last: int) -> list[Level]:
    """Levels of rows ``first`` to ``last``, the finest first, scored."""
    start = events.start_ns[first:last]
    span = max(1, int(events.end_ns[first:last].max() - start[0]))
    found: list[tuple[float, Anchor]] = []
    for alphabet, values in _alphabets(events, first, last).items():
        found += _anchors(alphabet, values, start, span)
    found.sort(key=lambda pair: (pair[0], pair[1].count, pair[1].alphabet))
    levels: list[Level] = []
    for period, anchor in found:
        level = next((x for x in reversed(levels[-40:]) if _same(x, period, anchor)), None)
        if level is None:
            level = Level(period, anchor.count, anchor.coverage, anchor.regular, anchor.extent)
            levels.append(level)
        level.anchors.append(anchor)
        if anchor.coverage > level.coverage:
            level.coverage, level.count = anchor.coverage, anchor.count
            level.regular, level.extent = anchor.regular, anchor.extent
    wide = [level for level in levels if level.coverage >= LEAST_COVERAGE]
    for level in wide:
        _judge(level, wide, events, first)
    return wide


def best_of(levels: list[Level]) -> Level | None:
    """The level that is most like a step; ``None`` where none is like one."""
    best = max(levels, key=lambda level: level.score, default=None)
    if best is not None and best.coverage * best.regular < EXPLAINED:
        local = _best_nearby(levels)
        if local is not None:
            return local
    if best is None or best.score < LEAST_SCORE:
        return None
    if not best.marked:
        # Models of different depth that take turns: their layers cover more than either's steps.
        outer = [
            x
            for x in levels
            if x.layered
            and x.marked
            and not _of_forwards(x, levels)
            and x.period > best.period
            and x.score >= TURNS * best.score
        ]
        if outer:
            return max(outer, key=lambda level: level.score)
        # It may hold many steps: requests, or programs that take turns, in the same order again.
        inner = [
            x
            for x in levels
            if x.marked and (x.layered or x.embedding) and x.period * MANY <= best.period
        ]
        best = max(inner, key=lambda level: level.score, default=best)
    near = [x for x in levels if x.period <= best.period and _as_good(x, best)]
    return min(near, key=lambda x: x.period)


def _of_forwards(level: Level, levels: list[Level]) -> bool:
    """Is it a request: so many times something with an embedding each, which a layer has not?"""
    return any(
        x.embedding
        and x.period * MANY <= level.period
        and x.regular >= NEAR
        and x.coverage >= NEAR * level.coverage
        for x in levels
    )


def _best_nearby(levels: list[Level]) -> Level | None:
    """Where programs ran one after the other: a step of the one that is known best, by what it
    explains from its first to its last."""
    able = [
        x
        for x in levels
        if x.marked
        and x.layered
        and x.coverage >= ALL_ALONG * x.extent >= ALL_ALONG * LEAST_COVERAGE
        and not _of_forwards(x, levels)
    ]
    if not able:
        return None

    def worth(level: Level) -> float:
        worth: float = level.score / level.extent**0.75
        return worth

    best = max(able, key=worth)
    near = [
        x
        for x in able
        if x.period <= best.period
        and (worth(x) >= NEAR * worth(best) or (_is_forward(x) and x.extent >= 0.7 * best.extent))
    ]
    return min(near, key=lambda x: x.period)


def _is_forward(level: Level) -> bool:
    """Does a whole forward run each time, and choose a token?"""
    return level.sampling and level.embedding and level.layered


def _as_good(level: Level, best: Level) -> bool:
    """A score near the best one; or a whole forward with its token each time, all of the time:
    tokens of several steps may be copied together."""
    if level.score >= NEAR * best.score:
        return True
    return (
        _is_forward(level) and level.coverage * level.regular >= 0.95 * best.coverage * best.regular
    )


def reference(level: Level) -> Anchor:
    """The anchor on whose count most others agree; of those, the one that reaches furthest."""
    top = max(a.coverage for a in level.anchors)
    able = [a for a in level.anchors if a.coverage >= 0.85 * top]
    counts = np.array([a.count for a in able])
    weight = np.array([a.coverage * a.regular for a in able])

    def agreed(anchor: Anchor) -> float:
        near = np.abs(counts - anchor.count) <= 1 + 0.01 * anchor.count
        return float(weight[near].sum())

    return max(
        able,
        key=lambda a: (
            round(agreed(a) * a.coverage, 2),
            a.coverage * a.regular,
            a.alphabet == "name",
        ),
    )


def occurrences(events: Events, anchor: Anchor, first: int, last: int) -> Ints:
    """All rows of an anchor within ``first`` to ``last``."""
    values = _alphabet(events, anchor.alphabet, first, last)
    found: Ints = first + np.flatnonzero(values == anchor.symbol)
    return found


def _alphabets(events: Events, first: int, last: int) -> dict[str, Ints]:
    names = ["tag", "name", "grid", "trigram"]
    if np.any(events.node[first:last]):
        names.append("node")
    return {name: _alphabet(events, name, first, last) for name in names}


def _alphabet(events: Events, name: str, first: int, last: int) -> Ints:
    symbol = events.symbol[first:last]
    if name == "tag":
        return events.tag[first:last]
    if name == "name":
        return symbol
    if name == "grid":
        return with_grid(symbol, events.size[first:last], events.what[first:last])
    if name == "trigram":
        return trigrams(symbol)
    node = events.node[first:last]
    return np.where(node > 0, node, -symbol - 2)


def _anchors(alphabet: str, values: Ints, start: Ints, span: int) -> list[tuple[float, Anchor]]:
    """(period, anchor) of every value that comes back regularly."""
    unique, first, ids = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    same = ordered[1:] == ordered[:-1]
    if not same.any():
        return []
    gap, owner = np.diff(order)[same], ordered[1:][same]
    time = (start[order[1:]] - start[order[:-1]])[same]
    by_gap = np.lexsort((gap, owner))
    count = np.bincount(owner, minlength=len(unique))
    begin = np.cumsum(count) - count
    there = np.flatnonzero(count)
    low = gap[by_gap[begin[there] + (count[there] - 1) // 2]]
    high = gap[by_gap[begin[there] + count[there] // 2]]
    median = np.zeros(len(unique))
    median[there] = (low + high) / 2
    fits = (gap >= 0.6 * median[owner]) & (gap <= 1.5 * median[owner])
    regular = np.bincount(owner, fits, len(unique)) / np.maximum(count, 1)
    coverage = np.bincount(owner, np.where(fits, time, 0), len(unique)) / span
    extent = np.bincount(owner, time, len(unique)) / span
    good = (count >= LEAST_REPEATS) & (median >= 2) & (regular >= 0.5) & (coverage >= 0.05)
    good &= unique != -1
    return [
        (
            float(median[i]),
            Anchor(
                alphabet,
                int(unique[i]),
                int(first[i]),
                int(count[i]) + 1,
                float(regular[i]),
                float(coverage[i]),
                float(extent[i]),
            ),
        )
        for i in np.flatnonzero(good).tolist()
    ]


def _same(level: Level, period: float, anchor: Anchor) -> bool:
    near = abs(period - level.period) <= max(1.0, 0.02 * level.period)
    return near and 0.6 <= anchor.count / level.count <= 1.67


def _judge(level: Level, levels: list[Level], events: Events, first: int) -> None:
    """Coverage × regularity, times what speaks for a step."""
    strong = [a for a in level.anchors if a.coverage >= 0.5 * level.coverage]
    rows = np.array([first + a.first for a in strong], np.int64)
    single = np.array([a.alphabet != "trigram" for a in strong], bool)
    tags = [a.symbol for a in strong if a.alphabet == "tag"]
    level.token_copy = 0 in tags or bool((events.token_copies[rows] & single).any())
    level.sampling = bool(events.sampling[rows].any())
    level.embedding = bool(events.embedding[rows].any())
    level.layered = any(
        x.period <= level.period / 3 and x.coverage >= 0.4 and len(x.anchors) >= 2 for x in levels
    )
    signs = 1 + 2 * level.token_copy + 2 * level.sampling + level.embedding + 2 * level.layered
    level.score = level.coverage * level.regular * (signs + 0.5 * min(1.0, len(strong) / 6))
