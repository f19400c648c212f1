"""The search for cycles in one stream of device work: pass by pass, until nothing more repeats.

A pass looks at a window in the middle of what is not explained yet, takes the level that is most
like a step, finds all occurrences of its anchor, and cuts the cycles between them. Cycles of the
same bag of work are a class and have one cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmprof.analysis.steps.cuts import Cut, Rule, place_cut, snapped
from llmprof.analysis.steps.events import KERNEL, WHOLE_GRAPH, Events, Flags
from llmprof.analysis.steps.levels import (
    LEAST_REPEATS,
    Anchor,
    Level,
    best_of,
    find_levels,
    occurrences,
    reference,
)
from llmprof.runfile.trace.rows import Ints

WINDOW_STEP = 5
WINDOWS = (300_000, 300_000 // WINDOW_STEP, 300_000 // WINDOW_STEP**2)
"""Rows that are searched for levels at once: fewer where many programs took turns."""
PASSES = 12
SHORTEST = 40
"""Rows; in less nothing is looked for."""
NEAR_END = 0.1
"""Of a cycle: so much further or nearer a cut may be in a class of other cycles."""
BLUR = 8
"""Rows: so far from where it usually lies an end may be, for copies that run meanwhile."""
CLASSES = 64
"""Classes of cycles with a cut of their own; rarer ones are cut like the one nearest in length."""


@dataclass(frozen=True)
class Pass:
    """One stretch that repeats: what anchors it and how it is cut."""

    level: Level
    anchor: Anchor
    name: int
    """Of the anchor's first row, an index into ``Events.names``."""
    cuts: tuple[Cut, ...]
    """The most common class first."""
    others: tuple[Level, ...]
    """What else repeats, best first."""
    count: int
    """Occurrences of the anchor."""


@dataclass(frozen=True, eq=False)
class Cycles:
    """What was found in one stream of work, in order; no two overlap."""

    begin: Ints
    """First row of every cycle."""
    end: Ints
    """One behind its last."""
    owner: Ints
    """Index into ``passes``."""
    passes: tuple[Pass, ...]

    def __len__(self) -> int:
        return len(self.begin)

    def of(self, kept: list[int]) -> Cycles:
        """Those of some passes, ascending."""
        mine = np.isin(self.owner, kept)
        owner = np.searchsorted(np.array(kept, np.int64), self.owner[mine])
        passes = tuple(self.passes[n] for n in kept)
        return Cycles(self.begin[mine], self.end[mine], owner, passes)

    @property
    def marked(self) -> bool:
        """Does anything say that tokens come out of most cycles?"""
        return len(self) > 0 and self.passes[int(np.argmax(np.bincount(self.owner)))].level.marked

    @property
    def score(self) -> float:
        """Of the levels, by how often each was seen."""
        weight = sum(p.level.count for p in self.passes)
        return sum(p.level.score * p.level.count for p in self.passes) / max(1, weight)


def search(events: Events) -> Cycles:
    """All cycles of one stream of work."""
    rows: Ints | None = None  # what no cycle holds yet; ``None``: everything
    passes: list[Pass] = []
    begins: list[Ints] = []
    ends: list[Ints] = []
    owners: list[Ints] = []
    for _ in range(PASSES):
        rest = events if rows is None else events.joined(rows)
        found = _one_pass(rest)
        if found is None:
            break
        made, begin, end = found
        if rows is not None:
            # A cycle may not reach over what an earlier pass has explained.
            whole = rows[end - 1] - rows[begin] == end - 1 - begin
            begin, end = rows[begin[whole]], rows[end[whole] - 1] + 1
            if len(begin) < LEAST_REPEATS:
                break
        begins.append(begin)
        ends.append(end)
        owners.append(np.full(len(begin), len(passes), np.int64))
        passes.append(made)
        free = np.ones(len(events), bool) if rows is None else _flags(rows, len(events))
        free &= ~_covered(begin, end, len(events))
        rows = np.flatnonzero(free)
        if len(rows) < SHORTEST:
            break
    if not passes:
        none = np.empty(0, np.int64)
        return Cycles(none, none, none, ())
    begin, end, owner = map(np.concatenate, (begins, ends, owners))
    order = np.argsort(begin, kind="stable")
    return Cycles(begin[order], end[order], owner[order], tuple(passes))


def _flags(rows: Ints, size: int) -> Flags:
    flags = np.zeros(size, bool)
    flags[rows] = True
    return flags


def _covered(begin: Ints, end: Ints, size: int) -> Flags:
    """Which rows lie in one of some intervals that do not overlap."""
    change = np.zeros(size + 1, np.int64)
    np.add.at(change, begin, 1)
    np.add.at(change, end, -1)
    flags: Flags = np.cumsum(change[:-1]) > 0
    return flags


def _one_pass(events: Events) -> tuple[Pass, Ints, Ints] | None:
    """(what was found, begins, ends)."""
    for window in WINDOWS:
        size = len(events)
        low = max(0, (size - window) // 2)  # the middle: past loading and warm-up
        if size < SHORTEST:
            return None
        levels = find_levels(events, low, min(size, low + window))
        level = best_of(levels)
        if level is not None:
            found = _apply(events, level, levels)
            if found is not None:
                return found
        if size <= window // WINDOW_STEP:
            return None
    return None


def _apply(events: Events, level: Level, levels: list[Level]) -> tuple[Pass, Ints, Ints] | None:
    """The level's anchor looked up everywhere, and the cycles between."""
    anchor = reference(level)
    at = occurrences(events, anchor, 0, len(events))
    if len(at) <= LEAST_REPEATS:
        return None
    length = np.diff(at)
    usual = float(np.median(length))
    good = (length >= 0.3 * usual) & (length <= 3 * usual)
    if np.count_nonzero(good) < LEAST_REPEATS:
        return None
    places, cuts = _cut_all(events, at, length, good, usual)
    ordered = sorted(levels, key=lambda x: -x.score)
    others = tuple(x for x in ordered if x is not level)[:4]
    name = int(events.name[at[0]])
    made = Pass(level, anchor, name, cuts, others, len(at))
    distance = np.diff(places)
    whole = (distance >= 0.2 * usual) & (distance <= 3.2 * usual)
    begin, end = places[:-1][whole], places[1:][whole]
    return (made, begin, end) if len(begin) else None


def _cut_all(
    events: Events, at: Ints, length: Ints, good: Flags, usual: float
) -> tuple[Ints, tuple[Cut, ...]]:
    """Rows at which steps begin, ascending, and the cuts of the classes."""
    start, rows = at[:-1][good], length[good]
    bag = events.bags[start + rows] - events.bags[start]
    unique, which, count = np.unique(bag, return_inverse=True, return_counts=True)
    offset = np.zeros(len(start), np.int64)
    cuts: list[Cut] = []
    rule_of: list[str] = [""] * len(unique)
    for one in np.argsort(-count, kind="stable")[:CLASSES].tolist():
        mine = np.flatnonzero(which == one)
        if len(mine) < 2 and cuts:
            break
        size = int(rows[mine[0]])
        place, rule = place_cut(events, start[mine], size)
        if cuts and rule != cuts[0].rule:
            first = int(start[np.flatnonzero(which == np.argmax(count))[0]])
            place, rule = _as_usual(events, cuts[0], first, int(start[mine[0]]), size) or (
                place,
                rule,
            )
        offset[mine] = place
        rule_of[one] = rule
        cuts.append(Cut(size, place, rule, len(mine)))
    ruled = np.array(rule_of)[which]
    rare = np.flatnonzero(ruled == "")
    for i in rare.tolist():  # as the class nearest in length has it, from the nearer end
        like = min(cuts, key=lambda c: abs(c.length - rows[i]))
        near = like.offset <= like.length / 2
        offset[i] = like.offset if near else max(1, rows[i] - (like.length - like.offset))
    places = start + np.clip(offset, 0, rows)
    copies, inputs = np.flatnonzero(events.token_copies) + 1, np.flatnonzero(events.input_copies)
    if cuts[0].rule == "copy to host":
        places[rare] = snapped(places[rare], copies, max(8, int(0.15 * usual)))
    # Copies on another stream change places with their neighbours from step to step.
    for name, where in (("copy to device", inputs), ("copy to host", copies)):
        mine = np.flatnonzero(ruled == name)
        places[mine] = snapped(places[mine], where, 6)
    breaks = length > 1.3 * usual
    edges = _edges(events, at, breaks, start, rows, offset)
    ends = _counted_ends(events, np.append(at[:-1][breaks], at[-1]), start, places)
    return np.unique(np.concatenate([places, edges, ends])), tuple(cuts)


def _as_usual(
    events: Events, usual: Cut, first: int, start: int, size: int
) -> tuple[int, Rule] | None:
    """Where a rarer class would be cut by another rule: behind the same row as the most common one,
    if that row is there and as far from the same end. Else two borders would be one, or none.

    Args:
        first: first row of a cycle that ``usual`` cuts.
        start: first row of a cycle of the class, ``size`` long.
    """
    if usual.rule not in ("copy to host", "copy to device"):
        return None
    symbol = events.symbol
    same = 1 + np.flatnonzero(symbol[start : start + size] == symbol[first + usual.offset - 1])
    if not len(same):
        return None
    late = usual.offset > usual.length / 2
    wanted = size - (usual.length - usual.offset) if late else usual.offset
    place = int(same[np.argmin(np.abs(same - wanted))])
    return (place, usual.rule) if abs(place - wanted) <= NEAR_END * usual.length else None


def _edges(events: Events, at: Ints, breaks: Flags, start: Ints, rows: Ints, offset: Ints) -> Ints:
    """The ends of runs: there the anchor has no neighbour, but the cut of the nearest cycle may be
    seen, if the row before it is the same.

    Args:
        at: the anchors.
        breaks: between each two of them, is that no cycle?
        start: first rows of the cycles, ``rows`` long, cut at ``offset``.
    """
    symbol, last = events.symbol, len(start) - 1
    ending = np.concatenate([at[:-1][breaks], at[-1:]])
    near = np.clip(np.searchsorted(start, ending) - 1, 0, last)
    ends = ending + offset[near]
    beginning = np.concatenate([at[:1], at[1:][breaks]])
    behind = np.clip(np.searchsorted(start, beginning), 0, last)
    begins = beginning - (rows[behind] - offset[behind])
    both = np.concatenate([ends, begins])
    like = np.concatenate([near, behind])
    inside = (both > 0) & (both <= len(events))
    both, like = both[inside], like[inside]
    model = symbol[np.clip(start[like] + offset[like], 1, len(events)) - 1]
    found: Ints = both[symbol[both - 1] == model]
    return found


def _counted_ends(events: Events, ending: Ints, start: Ints, places: Ints) -> Ints:
    """Ends of runs behind a kernel, found by counting kernels from the last anchor. By rows they
    would be missed: copies on another stream change places with them, and behind a last step lie
    some that elsewhere lie in the next one.

    Args:
        ending: the last anchors of runs.
        start: first rows of the cycles, each cut at its place.
    """
    symbol = events.symbol
    kernel = (events.what == KERNEL) | (events.what == WHOLE_GRAPH)
    before = np.concatenate([[0], np.cumsum(kernel)])
    row = np.flatnonzero(kernel)
    near = np.clip(np.searchsorted(start, ending) - 1, 0, len(start) - 1)
    model = places[near] - 1
    nth = before[ending] + before[places[near]] - before[start[near]] - 1
    there = (nth >= 0) & (nth < len(row)) & kernel[model]
    end = row[nth[there]] + 1
    length = (places - start)[near]
    same = symbol[end - 1] == symbol[model[there]]
    same &= np.abs(end - (ending + length)[there]) <= BLUR
    found: Ints = end[same]
    return found
