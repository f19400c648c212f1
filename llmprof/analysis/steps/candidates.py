"""Which ranges of a trace are its steps, judged by what they explain.

Ranges whose texts differ in numbers only are one candidate. It explains the trace if work is
launched inside its ranges, if they come regularly and reach over the file; its words come last.
Of ranges inside ranges, a step is what holds layers and is held by requests. Ranges of layers that
come round and round (``model.layers.0.forward`` … ``model.layers.3.forward``) give a step from one
to the next of the same text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.steps.composition import composition, phase_of
from llmprof.plaintext import one_line
from llmprof.runfile.trace.ranges import LaunchRows, RangeRows
from llmprof.runfile.trace.rows import Ints

Flags = NDArray[np.bool_]

LEAST = 3
"""Ranges of a candidate that is taken by itself."""
SURE = 0.5
"""A candidate below this score is offered, but not taken by itself."""
LEAST_INSIDE = 0.3
"""Of the launches; a candidate with less explains nothing, whatever its name."""
OFFERED = 8
_FORMAT, _TOKEN, _STEP, _PART, _ANY, _LAYER, _OPERATOR = 3.0, 2.0, 1.8, 1.0, 0.8, 0.4, 0.1
_WORDS = (
    (
        _OPERATOR,
        re.compile(
            r"^(aten|c10|cuda|cu[A-Z]|[nr]ccl|gloo|mpi:|ucc:|triton|autograd|Torch-Compiled"
            r"|## Call CompiledFxGraph)|op_id|::"
        ),
    ),
    (_LAYER, re.compile(r"layer|block\b|attn|attention|mlp|\bnorm|embed|lm_head|\bh\.\d", re.I)),
    (_TOKEN, re.compile(r"decode|next.?token|token.?\d", re.IGNORECASE)),
    (
        _STEP,
        re.compile(
            r"(?<![a-z])steps?(?![a-z])|ProfilerStep|execute_model|generat|iteration"
            r"|(?<![a-z])iter(?![a-z])",
            re.IGNORECASE,
        ),
    ),
    (_PART, re.compile(r"forward|model|sampl|batch", re.IGNORECASE)),
)
_DIGITS = re.compile(r"\d+")
_GLOB = re.compile(r"[*?\[\]]")


@dataclass(frozen=True)
class Candidate:
    """Ranges that could be the steps. Texts are untrusted."""

    pattern: str
    """For ``--step-range``: ``decode *``."""
    ranges: int
    """Of the thread that has most."""
    median_ns: int
    example: str
    score: float
    """The highest is taken, if it is at least ``SURE``."""
    inside: float | None
    """Share of the launches that lie in its ranges, 0–1, from its first to its last; ``None``: the
    file has no launch and no kernel."""
    reach: float | None
    """Share of the file's launches that lie between its first and its last range, 0–1."""
    regular: float
    """Share of its distances within half to twice the median."""
    cycle: int = 0
    """Texts that come round and round; 0: the texts do not."""

    @property
    def words(self) -> str:
        """One printable line."""
        told = "" if self.inside is None else f", {self.inside:.0%} of the launches inside"
        return f"{one_line(self.pattern, 60)}: {self.ranges:,} ranges{told}"

    @property
    def explained(self) -> float:
        """Share of what can be explained that it explains; of nothing, all."""
        return 1.0 if self.inside is None else self.inside


def matches(domain: str, text: str, pattern: str) -> bool:
    """Does a glob over texts, or over ``domain:text``, fit?"""
    return fnmatchcase(text, pattern) or (bool(domain) and fnmatchcase(f"{domain}:{text}", pattern))


def judged(ranges: RangeRows, launches: LaunchRows) -> list[Candidate]:
    """All candidates, the best first."""
    if not len(ranges):
        return []
    shapes, shape_of = _shapes(ranges)
    shape = shape_of[ranges.text]
    order = np.argsort(shape, kind="stable")
    edges = np.searchsorted(shape[order], np.arange(len(shapes) + 1))
    found: list[tuple[Candidate, Ints]] = []
    prompts = _prompts(ranges, shapes, shape)
    working = np.isin(ranges.process, np.unique(launches.process))
    for number, pattern in enumerate(shapes):
        rows = order[edges[number] : edges[number + 1]]
        # Of several processes one that launches work says how much is launched inside.
        mine = main_thread(ranges, rows[working[rows]] if working[rows].any() else rows)
        alone = len(mine) == 1 and in_format(ranges, mine)
        if (len(mine) >= 2 or alone) and pattern:
            # A prefill between two decode ranges is not for these to explain.
            others = launches if prompts[rows[0]] else _outside(ranges, prompts, launches)
            found.append((_judge(ranges, others, mine, pattern), mine))
    return _nested(ranges, found)


def main_thread(ranges: RangeRows, rows: Ints) -> Ints:
    """Of some rows (ascending) those of the thread with the most, outermost only."""
    if not len(rows):
        return rows
    key = ranges.process[rows] * (1 << 24) + ranges.tid[rows]
    keys, count = np.unique(key, return_counts=True)
    mine = rows[key == keys[np.argmax(count)]]
    return outermost(ranges, mine)


def outermost(ranges: RangeRows, rows: Ints) -> Ints:
    """Those that do not lie wholly inside an earlier one of the rows."""
    if len(rows) < 2:
        return rows
    reach = np.maximum.accumulate(ranges.end_ns[rows])
    out = np.concatenate([[True], ranges.end_ns[rows][1:] > reach[:-1]])
    chosen: Ints = rows[out]
    return chosen


def _shapes(ranges: RangeRows) -> tuple[list[str], Ints]:
    """Patterns, and for each text which one it fits."""
    numbers: dict[str, int] = {}
    of = np.empty(len(ranges.texts), np.int64)
    for at, (_, text) in enumerate(ranges.texts):
        pattern = _DIGITS.sub("*", _GLOB.sub("?", text[:400]))[:200]
        of[at] = numbers.setdefault(pattern, len(numbers))
    return list(numbers), of


def _prompts(ranges: RangeRows, shapes: list[str], shape: Ints) -> Flags:
    """Of every range: does its text say that it is a prefill, and no more?"""
    said = np.array(
        [phase_of(text) == "prefill" and not is_operator(text) for text in shapes] or [False]
    )
    return said[shape] if len(ranges) else np.zeros(0, bool)


def _outside(ranges: RangeRows, prompts: Flags, launches: LaunchRows) -> LaunchRows:
    """Launches that lie in no prefill of their process."""
    rows = np.flatnonzero(prompts)
    if not len(rows):
        return launches
    kept = np.ones(len(launches.start_ns), bool)
    for process in np.unique(ranges.process[rows]):
        own = outermost(ranges, rows[ranges.process[rows] == process])
        at = np.searchsorted(ranges.start_ns[own], launches.start_ns, "right") - 1
        inside = (at >= 0) & (launches.start_ns <= ranges.end_ns[own][np.maximum(at, 0)])
        kept &= ~(inside & (launches.process == process))
    if not kept.any():
        return launches
    return LaunchRows(launches.start_ns[kept], launches.process[kept])


def _judge(ranges: RangeRows, launches: LaunchRows, rows: Ints, pattern: str) -> Candidate:
    start, end = ranges.start_ns[rows], ranges.end_ns[rows]
    example = ranges.texts[int(ranges.text[rows[0]])][1]
    # Steps that count from 0 again for each request (``decode 0`` … ``decode 39``) are no cycle.
    cycle = 0 if _word(example) >= _STEP else _cycle(ranges, rows)
    inside, reach = _explains(start, end, int(ranges.process[rows[0]]), launches)
    distance = np.diff(start)
    middle = float(np.median(distance)) if len(distance) else 0.0
    near = (distance >= 0.5 * middle) & (distance <= 2 * middle)
    regular = float(np.mean(near)) if len(distance) else 1.0
    return Candidate(
        pattern=pattern,
        ranges=len(rows),
        median_ns=int(np.median(end - start)),
        example=example,
        score=_word(example)
        * (1.0 if inside is None or reach is None else reach * inside)
        * (0.5 + 0.5 * regular),
        inside=inside,
        reach=reach,
        regular=regular,
        cycle=cycle,
    )


def _word(text: str) -> float:
    if composition(text) is not None:
        return _FORMAT
    for weight, words in _WORDS:
        if words.search(text[:400]):
            return weight
    return _ANY


def in_format(ranges: RangeRows, rows: Ints) -> bool:
    """Does the first of the rows have a text in a format that an engine writes on its steps?"""
    return composition(ranges.texts[int(ranges.text[rows[0]])][1]) is not None


def is_operator(text: str) -> bool:
    """A framework's operator: never a step."""
    return bool(_WORDS[0][1].search(text[:400]))


def _explains(
    start: Ints, end: Ints, process: int, launches: LaunchRows
) -> tuple[float | None, float | None]:
    """(share of launches inside, share of launches from the first to the last range)."""
    at = launches.start_ns[launches.process == process]
    if not len(at):
        # Scheduler and worker are two processes: the launches of the others are all there is.
        at = launches.start_ns
    if not len(at):
        return None, None
    reach = np.maximum.accumulate(end)
    between = at[(at >= start[0]) & (at <= reach[-1])]
    if not len(between):
        return 0.0, 0.0
    before = np.searchsorted(start, between, "right") - 1
    inside = float(np.mean(between <= reach[before]))
    return inside, len(between) / len(at)


def _cycle(ranges: RangeRows, rows: Ints) -> int:
    """How many texts come round in one order at least three times; 0 where they do not."""
    texts, which = np.unique(ranges.text[rows], return_inverse=True)
    length = len(texts)
    if length < 2 or len(rows) < LEAST * length:
        return 0
    same = which[length:] == which[:-length]
    return length if bool(same.mean() >= 0.95) else 0


def first_of_cycle(ranges: RangeRows, rows: Ints, length: int) -> str:
    """The text that a cycle begins with: behind the longest wait, of near equals the one with
    the lowest number."""
    start, end = ranges.start_ns[rows], ranges.end_ns[rows]
    wait = np.concatenate([[0], np.maximum(0, start[1:] - end[:-1])])
    texts, which = np.unique(ranges.text[rows], return_inverse=True)
    waits = [float(np.median(wait[1:][which[1:] == n])) for n in range(len(texts))]
    longest = max(waits)
    near = [n for n in range(len(texts)) if waits[n] >= 0.9 * longest]

    def number(n: int) -> tuple[list[int], str]:
        text = ranges.texts[int(texts[n])][1]
        return [int(d[:18]) for d in _DIGITS.findall(text[:400])], text

    return ranges.texts[int(texts[min(near, key=number)])][1]


def _nested(ranges: RangeRows, found: list[tuple[Candidate, Ints]]) -> list[Candidate]:
    """By score; what holds several ranges of another good candidate is a request, not a step."""
    found.sort(key=lambda pair: (-pair[0].score, pair[0].pattern))
    leading = found[:OFFERED]
    made = []
    for candidate, rows in leading:
        held = [_held(ranges, rows, other) for step, other in leading if _good(step, candidate)]
        if max(held, default=0.0) >= 2:
            candidate = replace(candidate, score=candidate.score * 0.25)
        made.append(candidate)
    made += [candidate for candidate, _ in found[OFFERED:]]
    return sorted(made, key=lambda c: (-c.score, c.pattern))


def _good(step: Candidate, other: Candidate) -> bool:
    return (
        step is not other
        and step.ranges >= 2 * other.ranges
        and step.explained >= 0.8
        and _word(step.example) >= _STEP
    )


def _held(ranges: RangeRows, outer: Ints, inner: Ints) -> float:
    """Ranges of ``inner`` within one of ``outer``, mean."""
    if ranges.process[outer[0]] != ranges.process[inner[0]]:
        return 0.0
    first = np.searchsorted(ranges.start_ns[inner], ranges.start_ns[outer])
    last = np.searchsorted(ranges.start_ns[inner], ranges.end_ns[outer], "right")
    return float(np.mean(last - first))


def best(found: list[Candidate]) -> Candidate | None:
    """The one to be taken without being asked; ``None``: none is sure."""
    for candidate in found:
        enough = candidate.ranges >= LEAST * max(1, candidate.cycle)
        enough |= composition(candidate.example) is not None  # its engine says so: one is enough
        if candidate.score >= SURE and enough and candidate.explained >= LEAST_INSIDE:
            return candidate
    cycles = [
        c
        for c in found
        if c.cycle
        and c.explained >= 0.8
        and (c.reach is None or c.reach >= 0.8)
        and c.regular >= 0.8
    ]
    return max(cycles, key=lambda c: c.ranges, default=None)
