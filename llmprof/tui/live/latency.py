"""Per-step latency as bars: one cell a step, several rows high where there is room.

Bars fill from the left and stay where they are, so a new step costs the bytes of one column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Final

from llmprof.records import Maybe, Unavailable
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_label, fit_text, row, rule, spread
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import plain
from llmprof.tui.view import Lane, Scale

OUTLIER: Final = 1.5
"""A step above this many times the round's median stands out."""
_MIN_STEPS: Final = 5
"""Below this many steps a median says nothing about outliers."""
_SHARED_SPREAD: Final = 3.0
"""Engines whose medians differ by more than this are not drawn on one scale, unless asked."""
_HEADROOM: Final = 2.0
"""A scale ends at this many medians; one huge step must not flatten all others."""
_AXIS: Final = 6
_NAME: Final = 10
_NICE: Final = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_TALLEST: Final = 16


@dataclass(frozen=True)
class Cells:
    """How steps lie on cells: several share one, or one has several."""

    steps: int
    wide: int = 1

    def values(self, steps: Sequence[float]) -> list[float]:
        """Of every cell."""
        return [v for v in buckets(steps, self.steps) for _ in range(self.wide)]


def nice_ceiling(value: float) -> float:
    """The next round number; coarse, so that the scale stays while steps come in."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next((n * unit for n in _NICE if value <= n * unit * (1 + 1e-9)), 10 * unit)


def finite(steps: Sequence[float]) -> list[float]:
    return [s for s in steps if math.isfinite(s)]


def outlier_limit(steps: Sequence[float]) -> float:
    """ms above which a step is an outlier; infinite where there are too few to tell."""
    good = finite(steps)
    return OUTLIER * median(good) if len(good) >= _MIN_STEPS else math.inf


def tops(lanes: Sequence[Lane], scale: Scale) -> tuple[list[float], bool]:
    """Top of each engine's y scale in ms, and whether it is one for all.

    Statistics of earlier rounds count too, so that the scale stays when a round begins.
    """
    medians, ends = [], []
    for lane in lanes:
        engine, steps = lane.engine, finite(lane.engine.step_ms)
        middle = _number(engine.itl_p50_ms) or (median(steps) if steps else 0.0)
        end = max([_number(engine.itl_max_ms), *steps])
        medians.append(middle)
        ends.append(min(end, _HEADROOM * middle) if middle else end)
    seen = [m for m in medians if m > 0]
    near = not seen or max(seen) <= _SHARED_SPREAD * min(seen)
    if scale == "shared" or (scale == "auto" and near):
        return [nice_ceiling(max(ends, default=1.0))] * len(lanes), True
    return [nice_ceiling(end) for end in ends], False


def _number(value: Maybe) -> float:
    return 0.0 if isinstance(value, Unavailable) or not math.isfinite(value) else value


def per_cell(rounds: Sequence[Sequence[float]], width: int) -> int:
    """Steps that share a cell, the same for every engine so that columns line up."""
    return max(1, math.ceil(max((len(r) for r in rounds), default=0) / max(1, width)))


def buckets(steps: Sequence[float], size: int) -> list[float]:
    """Largest of every ``size`` steps."""
    return [max(finite(steps[i : i + size]), default=0.0) for i in range(0, len(steps), size)]


def bars(
    values: Sequence[float], top: float, limit: float, height: int, glyphs: Glyphs, role: str
) -> list[Row]:
    """``height`` rows, top first. A value above ``limit`` changes colour and carries a mark.

    The mark stands in the cell above the bar, or replaces the bar's last cell at the top.
    """
    levels = len(glyphs.bars) - 1
    columns: list[list[tuple[str, str]]] = []
    for value in values:
        level = min(height * levels, round(value / top * height * levels))
        level = max(level, 1 if value > 0 else 0)
        over = value > limit
        name = "outlier" if over else role
        cells = [
            (glyphs.bars[min(levels, max(0, level - (height - 1 - y) * levels))], name)
            for y in range(height)
        ]
        if over:
            cells[max(0, height - 1 - math.ceil(level / levels))] = (glyphs.outlier, name)
        columns.append([("", "") if c == " " else (c, r) for c, r in cells])
    rows = []
    for y in range(height):
        groups = groupby((c[y] for c in columns), key=lambda cell: cell[1])
        rows.append(tuple(Span("".join(c or " " for c, _ in g), name) for name, g in groups))
    return rows


def section(
    lanes: Sequence[Lane],
    scale: Scale,
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    over: bool = False,
    chosen: str = "",
) -> list[Row]:
    """The heading and every engine's bars in at most ``height`` rows (at least one an engine).

    When the run is ``over``, steps get as many cells as there are; before, they stay where they
    are as more come.

    Args:
        chosen: the round that the user asked for.
    """
    rounds = [lane.engine.step_ms for lane in lanes]
    limits, shared = tops(lanes, scale)
    each = (height - 1) // max(1, len(lanes))
    axis = each >= 3 and height - 1 - len(lanes) * 3 >= 1
    inline = each < 3
    room = width - _AXIS - (2 * _NAME if inline else 0)
    size = per_cell(rounds, room)
    most = max((len(r) for r in rounds), default=0)
    cells = Cells(size, max(1, room // max(1, math.ceil(most / size))) if over else 1)
    out = [_heading(limits, shared, cells, width, glyphs, any(rounds), chosen)]
    if inline:
        return out + [
            _inline(lane, top, cells, width, glyphs)
            for lane, top in zip(lanes, limits, strict=True)
        ]
    tall = min(_TALLEST, (height - 1 - axis) // max(1, len(lanes)) - 1)
    for lane, top in zip(lanes, limits, strict=True):
        out.append(_label(lane, width, glyphs))
        out.extend(_plot(lane, top, cells, tall, width, glyphs))
    return out + ([_x_axis(cells, width - _AXIS, most if over else None)] if axis else [])


def _heading(
    limits: Sequence[float],
    shared: bool,
    cells: Cells,
    width: int,
    glyphs: Glyphs,
    drawn: bool,
    chosen: str,
) -> Row:
    title = row(Span("step latency", "strong"), Span(f" {chosen}" if chosen else "", "dim"))
    if not drawn:
        return rule(title, (), width, glyphs.track)
    scale = f"0–{limits[0]:g} ms" if shared and limits else "own scale each"
    cell = "1 step a cell" if cells.wide == 1 else f"{cells.wide} cells a step"
    if cells.steps > 1:
        cell = f"max of {cells.steps} steps a cell"
    mark = f"over {OUTLIER:g}× median" if width >= 100 else f">{OUTLIER:g}× median"
    right = row(
        Span(f"{cell} · {scale} · ", "dim"),
        Span(glyphs.outlier, "outlier"),
        Span(f" {mark}", "dim"),
    )
    return rule(title, right, width, glyphs.track)


def _label(lane: Lane, width: int, glyphs: Glyphs) -> Row:
    engine = lane.engine
    left = row(
        Span(glyphs.lane, lane.accent),
        Span(clean(engine.label), f"{lane.accent} strong"),
        Span(f"  {clean(engine.round_label)}", "dim"),
    )
    good = finite(engine.step_ms)
    if not good:
        return spread(left, (), width)
    limit = outlier_limit(good)
    late = sum(s > limit for s in good)
    facts = [
        ("steps", f"{len(engine.step_ms):4d}"),
        ("last", f"{plain(good[-1]):>5}"),
        ("median", f"{plain(median(good)):>5}"),
        ("max", f"{plain(max(good)):>5}"),
    ]
    if width < 100:
        facts = facts[1:]
    spans: list[Span] = []
    for name, value in facts:
        spans += [Span(f"{name} ", "dim"), Span(value), Span("  ")]
    spans[-1] = Span(" ms  ", "dim")
    mark = Span(f"{glyphs.outlier}{late:3d}", "outlier") if late else Span("    ")
    return spread(left, (*spans, mark), width)


def _plot(lane: Lane, top: float, cells: Cells, tall: int, width: int, glyphs: Glyphs) -> list[Row]:
    steps = lane.engine.step_ms
    if not steps:
        why = _why_no_steps(lane)
        return [
            row(Span(f"{' ' * _AXIS} {why}" if y == tall // 2 else "", "dim")) for y in range(tall)
        ]
    drawn = bars(cells.values(steps), top, outlier_limit(steps), tall, glyphs, lane.accent)
    labels = {0: f"{top:g}", tall - 1: "0"} if tall > 1 else {0: f"{top:g}"}
    if tall >= 5 and tall % 2 == 0:
        # The upper edge of this row is the middle of the scale.
        labels[tall // 2] = f"{top / 2:g}"
    rows = []
    for y, line in enumerate(drawn):
        tick = glyphs.tick[0 if y in labels else 1]
        axis = row(Span(labels.get(y, "").rjust(_AXIS - 1), "dim"), Span(tick, "track"))
        rows.append(fit((*axis, *line), width))
    return rows


def _why_no_steps(lane: Lane) -> str:
    if lane.failed:
        return "failed"
    return "no timed decode step" if lane.engine.state == "finished" else "no steps yet"


def _inline(lane: Lane, top: float, cells: Cells, width: int, glyphs: Glyphs) -> Row:
    engine = lane.engine
    name = row(
        Span(glyphs.lane, lane.accent),
        Span(fit_label(clean(engine.label), _NAME - 1), f"{lane.accent} strong"),
        Span(f"{top:g}".rjust(_AXIS - 1), "dim"),
        Span(glyphs.tick[0], "track"),
    )
    good = finite(engine.step_ms)
    last = row(Span(f"{plain(good[-1]):>6}"), Span(" ms ", "dim")) if good else ()
    if not good:
        return fit((*name, Span(_why_no_steps(lane), "dim")), width)
    limit = outlier_limit(engine.step_ms)
    line = bars(cells.values(engine.step_ms), top, limit, 1, glyphs, lane.accent)[0]
    return spread((*name, *line), last, width)


def _x_axis(cells: Cells, width: int, most: int | None) -> Row:
    """Step numbers under the first column and about every 20th, up to the last step ``most``."""
    apart = next(n for n in (1, 2, 5, 10, 20) if n * cells.wide >= 20 or n == 20)
    text = "1"
    for number in range(apart, width + 1, apart):
        at = (number - 1) * cells.wide
        mark = str(number * cells.steps)
        if at + len(mark) > width or (most is not None and number * cells.steps > most):
            break
        if at > len(text):
            text = text.ljust(at) + mark
    return row(Span(" " * (_AXIS - 5) + "step " + fit_text(text, width), "dim"))
