"""A step's work drawn on a time axis: bars, letters and names, gaps as gaps. Pure functions.

Level of detail: zoomed out hundreds of kernels share a cell, zoomed in one has hundreds of cells.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from rich.cells import cell_len

from llmprof.analysis.categories import IDLE
from llmprof.analysis.traced import StepItem
from llmprof.tui.category import letter, role
from llmprof.tui.cells import Cell, Row, Span, clean, fit_text, row
from llmprof.tui.glyphs import Glyphs
from llmprof.tui.numbers import duration

Window = tuple[int, int]
"""Start and end in ns since the start of the step."""

_NAMED: Final = 6
"""Cells from which a kernel is named instead of lettered."""
_TICK: Final = 13
"""Fewest cells between two labels of the axis."""


def shares(items: Sequence[StepItem], window: Window, width: int) -> list[tuple[str, float]]:
    """For each cell the category with the most time in it, and its busy share, 0–1."""
    start, end = window
    scale = width / max(1, end - start)
    time_in: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(width)]
    for item in items:
        if item.start_ns >= end:
            break
        if item.kind == "gap" or item.end_ns <= start:
            continue
        a = (max(item.start_ns, start) - start) * scale
        b = (min(item.end_ns, end) - start) * scale
        for cell in range(int(a), min(width - 1, int(b)) + 1):
            covered = min(b, cell + 1) - max(a, cell)
            if covered > 0:
                time_in[cell][item.category] += covered
    return [
        (max(found, key=lambda name: found[name]), min(1.0, sum(found.values())))
        if found
        else (IDLE, 0.0)
        for found in time_in
    ]


def bars(cells: Sequence[tuple[str, float]], tall: int, glyphs: Glyphs) -> list[Row]:
    """``tall`` rows, top first: the height is the busy share of a cell, the rest is idle."""
    levels = len(glyphs.bars) - 1
    heights = [round(levels * tall * share) or (1 if share > 0 else 0) for _, share in cells]
    rows = []
    for line in range(tall - 1, -1, -1):
        drawn = []
        for (category, _), full in zip(cells, heights, strict=True):
            level = min(levels, max(0, full - line * levels))
            drawn.append((glyphs.bars[level], role(category) if level else ""))
        rows.append(_row(drawn))
    return rows


def captions(
    items: Sequence[StepItem],
    cells: Sequence[tuple[str, float]],
    window: Window,
    wall_ns: int,
    glyphs: Glyphs,
) -> Row:
    """Under each cell its category's letter; names and lengths of gaps where there is room.

    Behind the end of the step (``wall_ns``) there is nothing: that is not waiting.
    """
    start, end = window
    width = len(cells)
    scale = width / max(1, end - start)
    line: list[Cell] = [
        (letter(category), role(category)) if share > 0 else (glyphs.track, "track")
        for category, share in cells
    ]
    for item in items:
        if item.start_ns >= end:
            break
        first = max(0, math.ceil((item.start_ns - start) * scale))
        last = min(width, int((item.end_ns - start) * scale))
        if last - first >= _NAMED:
            line[first:last] = _caption(item, last - first, glyphs)
    over = math.ceil((wall_ns - start) * scale)
    if over < width:
        tail = f"{glyphs.tick[1]} step over, {duration(wall_ns)}"
        line[max(0, over) :] = _chars(fit_text(tail, width - max(0, over)), "dim")
    return _row(line)


def _caption(item: StepItem, room: int, glyphs: Glyphs) -> list[Cell]:
    if item.kind == "gap":
        text = f" {duration(item.end_ns - item.start_ns)} "
        if len(text) > room:
            return _chars(glyphs.track * room, "track")
        left = (room - len(text)) // 2
        right = room - len(text) - left
        return [
            *_chars(glyphs.track * left, "track"),
            *_chars(text, "warn"),
            *_chars(glyphs.track * right, "track"),
        ]
    name = f"{letter(item.category)} {clean(item.short_name)}"
    if cell_len(name) != len(name):
        # Wide characters do not fit a grid of single cells.
        name = letter(item.category) * (room - 1)
    return _chars(fit_text(name, room - 1) + " ", role(item.category))


def _chars(text: str, name: str) -> list[Cell]:
    return [(char, name) for char in text]


def _row(cells: Sequence[Cell]) -> Row:
    """Neighbours of one role as one span."""
    groups = groupby(cells, key=lambda cell: cell[1])
    return tuple(Span("".join(char for char, _ in group), name) for name, group in groups)


def marker(item: StepItem, window: Window, width: int, glyphs: Glyphs) -> Row:
    """A line under the selected item with its name and length; empty where it is out of sight."""
    start, end = window
    scale = width / max(1, end - start)
    if item.end_ns <= start or item.start_ns >= end:
        return ()
    first = min(width - 1, max(0, int((item.start_ns - start) * scale)))
    last = min(width, max(first + 1, math.ceil((item.end_ns - start) * scale)))
    line = glyphs.done * (last - first)
    text = f" {clean(item.short_name)} {duration(item.end_ns - item.start_ns)} "
    spans = row(Span(line, "bright"))
    if width - last >= cell_len(text):
        return (Span(" " * first), *spans, Span(text, "dim"))
    if first >= cell_len(text):
        return (Span(" " * (first - cell_len(text))), Span(text, "dim"), *spans)
    return (Span(" " * first), *spans)


def axis(window: Window, width: int, glyphs: Glyphs) -> Row:
    """Round times in one unit; each tick stands in the cell where its time is."""
    start, end = window
    length = max(1, end - start)
    step = _round_step(length * _TICK / max(1, width))
    unit, name = (1e6, "ms") if end >= 2_000_000 and step >= 10_000 else (1e3, "µs")
    digits = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    out = ""
    for time in range(-(-start // step) * step, end, step):
        at = (time - start) * width // length
        text = f"{glyphs.tick[1]}{time / unit:.{digits}f} {name}"
        if at >= len(out) and at + len(text) <= width:
            out = out.ljust(at) + text
    return row(Span(out, "dim"))


def _round_step(least: float) -> int:
    """The next 1, 2 or 5 × 10ⁿ ns."""
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, least))))
    return next((n * unit for n in (1, 2, 5) if n * unit >= least), 10 * unit)
