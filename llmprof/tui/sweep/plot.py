"""A plot of lines in cells: places of several curves over one axis, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmprof.tui.drawing.cells import Row, Span, fit, row

_LABEL = 9


@dataclass(frozen=True)
class Dot:
    """One place of a curve, in cells' own units."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    mark: str
    """One character, so that colour never stands alone."""
    role: str
    dots: tuple[Dot, ...]


def columns_of(xs: Sequence[float], width: int) -> dict[float, int]:
    """x → column: logarithmic where the values span a factor of 8 or more."""
    if not xs:
        return {}
    log = min(xs) > 0 and max(xs) >= 8 * min(xs)
    at = [math.log(x) if log else x for x in xs]
    low, span = min(at), max(at) - min(at)
    return {
        x: round((a - low) / span * (width - 1)) if span else width // 2
        for x, a in zip(xs, at, strict=True)
    }


def plot(
    series: Sequence[Series], ticks: Sequence[tuple[float, str]], width: int, height: int
) -> list[Row]:
    """``height`` rows: the y axis from 0, marks at the places, ``│`` over the intervals, joined by
    dots; below it the labels of the x axis.

    Args:
        ticks: every x with its label.
    """
    room, rows = max(8, width - _LABEL), max(3, height - 1)
    values = [v for s in series for d in s.dots for v in (d.y, d.high or d.y)]
    top = max(values, default=1.0) or 1.0
    columns = columns_of(sorted({x for x, _ in ticks}), room)
    cells: dict[tuple[int, int], tuple[str, str]] = {}

    def line(y: float) -> int:
        return rows - 1 - min(rows - 1, max(0, round(y / top * (rows - 1))))

    for one in series:
        for a, b in pairwise(one.dots):
            start, end = columns[a.x], columns[b.x]
            for x in range(start + 1, end):
                share = (x - start) / (end - start)
                cells.setdefault((x, line(a.y + (b.y - a.y) * share)), ("·", one.role))
    for one in series:
        for dot in one.dots:
            if dot.low is not None and dot.high is not None:
                for y in range(line(dot.high), line(dot.low) + 1):
                    cells[columns[dot.x], y] = ("│", one.role)
    for one in series:
        for dot in one.dots:
            cells[columns[dot.x], line(dot.y)] = (one.mark, f"{one.role} strong")
    out = []
    for y in range(rows):
        value = top * (rows - 1 - y) / (rows - 1)
        shown = f"{value:>{_LABEL - 2}.4g} " if y % 3 == 0 or y == rows - 1 else " " * (_LABEL - 1)
        spans = [Span(shown, "dim"), Span("┤" if shown.strip() else "│", "track")]
        spans += [Span(*cells.get((x, y), (" ", ""))) for x in range(room)]
        out.append(fit(row(*spans), width))
    return [*out, _ticks(ticks, columns, width, room)]


def _ticks(
    ticks: Sequence[tuple[float, str]], columns: dict[float, int], width: int, room: int
) -> Row:
    """Labels under their columns; one that has no room is left out."""
    line, free = [" "] * room, 0
    for x, label in sorted(ticks):
        start = min(max(0, columns[x] - len(label) // 2), room - len(label))
        if start >= free and start >= 0:
            line[start : start + len(label)] = label
            free = start + len(label) + 1
    return fit(row(Span(" " * _LABEL), Span("".join(line), "dim")), width)
