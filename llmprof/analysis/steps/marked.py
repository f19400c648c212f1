"""From the ranges that are the steps to rounds of them.

A step lasts from the start of its range to the start of the next one, so what follows a range
(waiting, sampling) belongs to its step, unless another range of the same level comes first: a
prefill between two decode ranges is a stretch of its own, and a long gap before it a pause
(``stretch``). A range that follows nearly every step, and does not say that it is a prefill, is a
part of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmprof.analysis.steps.candidates import (
    Candidate,
    first_of_cycle,
    is_operator,
    main_thread,
    matches,
    outermost,
)
from llmprof.analysis.steps.composition import composition, phase_of
from llmprof.analysis.steps.stretch import Ends, Stretch
from llmprof.plaintext import one_line
from llmprof.records.steps import (
    StepLabel,
    StepPhase,
)
from llmprof.runfile.trace.ranges import RangeRows
from llmprof.runfile.trace.rows import Ints

PART = 0.8
"""A range of another text that follows this share of the steps is a part of them."""


@dataclass(frozen=True)
class Marked:
    """The steps of one process."""

    process: int
    tid: int
    rounds: tuple[tuple[Stretch, ...], ...]
    taken: int
    left_out: tuple[str, ...]
    parts: tuple[str, ...]
    """Texts of ranges between two that are counted in."""
    overlapping: int = 0
    """Ranges that begin before the one before has ended."""
    other_tids: tuple[int, ...] = ()
    """Other threads with such ranges."""


def mark(ranges: RangeRows, pattern: str, candidate: Candidate | None = None) -> list[Marked]:
    """Rounds of every process that has ranges of the pattern; empty where none fits.

    Args:
        candidate: that the pattern is of, where it was chosen by itself.
    """
    rows = matching(ranges, pattern)
    made = []
    for process in np.unique(ranges.process[rows]).tolist():
        own = rows[ranges.process[rows] == process]
        made.append(_of_process(ranges, own, int(process), candidate))
    return made


def matching(ranges: RangeRows, pattern: str) -> Ints:
    """Rows of the ranges that a glob fits."""
    fits = np.array([matches(domain, text, pattern) for domain, text in ranges.texts] or [False])
    return np.flatnonzero(fits[ranges.text]) if len(ranges) else np.empty(0, np.int64)


def _of_process(ranges: RangeRows, rows: Ints, process: int, candidate: Candidate | None) -> Marked:
    mine = main_thread(ranges, rows)
    tid = int(ranges.tid[mine[0]])
    left = []
    elsewhere = int(np.count_nonzero(ranges.tid[rows] != tid))
    inside = len(rows) - elsewhere - len(mine)
    others = tuple(int(t) for t in np.unique(ranges.tid[rows]) if t != tid)
    if elsewhere:
        threads = ", ".join(map(str, others[:5]))
        left.append(
            f"{elsewhere} such ranges of thread {threads} are not taken as steps (those of thread"
            f" {tid} are)"
        )
    if inside:
        left.append(f"{inside:,} ranges inside another one of the same pattern")
    if candidate is not None and candidate.cycle:
        first = first_of_cycle(ranges, mine, candidate.cycle)
        begins = np.array([text == first for _, text in ranges.texts])[ranges.text[mine]]
        left.append(
            f"{int(np.count_nonzero(~begins)):,} ranges that follow"
            f" {one_line(first, 60)} within its step"
        )
        mine = mine[begins]
    overlapping = int(np.count_nonzero(ranges.start_ns[mine][1:] < ranges.end_ns[mine][:-1]))
    separators, parts = _between(ranges, mine, process, tid)
    rounds = _rounds(ranges, mine, separators, overlapping > 0)
    return Marked(process, tid, rounds, len(mine), tuple(left), parts, overlapping, others)


def _between(
    ranges: RangeRows, mine: Ints, process: int, tid: int
) -> tuple[dict[int, list[int]], tuple[str, ...]]:
    """(step → rows of ranges behind it that are steps of another sort, texts of its parts)."""
    taken = np.zeros(len(ranges), bool)
    taken[mine] = True
    start, end = ranges.start_ns[mine], ranges.end_ns[mine]
    rest = np.flatnonzero((ranges.process == process) & (ranges.tid == tid) & ~taken)
    behind = np.searchsorted(start, ranges.start_ns[rest], "right") - 1
    until = np.searchsorted(start, ranges.end_ns[rest], "left") - 1
    free = (behind >= 0) & (behind == until) & (behind < len(mine) - 1)
    free[free] &= ranges.start_ns[rest[free]] >= end[behind[free]]
    rest = rest[free]
    works = np.array([not is_operator(text) for _, text in ranges.texts])
    rest = outermost(ranges, rest[works[ranges.text[rest]]])
    if not len(rest):
        return {}, ()
    behind = np.searchsorted(start, ranges.start_ns[rest], "right") - 1
    separators: dict[int, list[int]] = {}
    parts: list[str] = []
    texts = ranges.text[rest]
    shape = {int(t): _shape(ranges.texts[int(t)][1]) for t in np.unique(texts)}
    steps_with: dict[str, set[int]] = {}
    for row, step in zip(texts.tolist(), behind.tolist(), strict=True):
        steps_with.setdefault(shape[row], set()).add(step)
    for name, steps in steps_with.items():
        other = phase_of(name) in ("prefill", "mixed")
        if len(steps) >= PART * (len(mine) - 1) and not other:
            parts.append(name)
    for at, step in zip(rest.tolist(), behind.tolist(), strict=True):
        if shape[int(ranges.text[at])] not in parts:
            separators.setdefault(step, []).append(at)
    return separators, tuple(parts)


def _shape(text: str) -> str:
    """Formats say in their numbers what a step is; elsewhere numbers only count."""
    if composition(text) is not None:
        return text
    return "".join("*" if c.isdigit() else c for c in text[:200])


def _rounds(
    ranges: RangeRows, mine: Ints, separators: dict[int, list[int]], overlap: bool
) -> tuple[tuple[Stretch, ...], ...]:
    start, end = ranges.start_ns[mine], ranges.end_ns[mine]
    labels = [labelled(ranges.texts[int(t)][1], "decode") for t in ranges.text[mine]]
    follows = np.array(
        [n not in separators and _goes_on(*pair) for n, pair in enumerate(pairwise(labels))], bool
    )
    usual = Ends.of(start[:-1], end[:-1], start[1:], follows, np.ones(len(follows), bool))
    typical = round(usual.typical_ns)
    rounds: list[list[Stretch]] = [[]]
    for n, label in enumerate(labels):
        begin, done = int(start[n]), int(end[n])
        own = begin + typical if overlap else done + usual.usual_ns
        if n + 1 == len(mine):
            rounds[-1].append(Stretch(begin, own, label))
            break
        then = separators.get(n, [])
        follower = int(start[n + 1])
        until = int(ranges.start_ns[then[0]]) if then else follower
        gap = until - (max(done, own - usual.usual_ns) if overlap else done)
        parted = usual.parted(gap, bool(follows[n]))
        rounds[-1].append(Stretch(begin, min(own, until) if parted else until, label))
        if parted and usual.pause(gap) and not then:
            rounds.append([])
        elif parted and own < until:
            rounds[-1].append(Stretch(own, until, StepLabel("pause")))
        if then:
            rounds[-1] += _stretches(ranges, then, follower)
    return tuple(tuple(part) for part in rounds if part)


def _goes_on(label: StepLabel, then: StepLabel) -> bool:
    """Are two ranges in a row steps of requests that go on? A stall between them is a step's."""
    return then.phase == label.phase or then.phase not in ("prefill", "other")


def _stretches(ranges: RangeRows, rows: list[int], end_ns: int) -> list[Stretch]:
    """Of ranges between two steps, up to the next one; those of no known sort are one stretch."""
    made: list[Stretch] = []
    begins = [int(ranges.start_ns[row]) for row in rows]
    for row, begin, until in zip(rows, begins, [*begins[1:], end_ns], strict=True):
        label = labelled(ranges.texts[int(ranges.text[row])][1], "other")
        if made and label.phase == made[-1].label.phase == "other":
            made[-1] = Stretch(made[-1].start_ns, until, made[-1].label)
        else:
            made.append(Stretch(begin, until, label))
    return made


def labelled(text: str, otherwise: StepPhase) -> StepLabel:
    """What the text says, in a format or in words."""
    found = composition(text)
    phase = found.phase if found is not None else phase_of(text)
    return StepLabel(phase or otherwise, text, found)
