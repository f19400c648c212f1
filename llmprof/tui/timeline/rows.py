"""The rows of a lane: steps, kernels, streams, API calls, series; a chart's cells in, spans out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Final

import numpy as np
from rich.cells import cell_len

from llmprof.analysis.timeline.axis import Floats, Lane, Series, StepAxis, Track
from llmprof.analysis.timeline.lod import LaneWork
from llmprof.runfile.trace.rows import Ints
from llmprof.tui.drawing.cells import Row, Span, clean, fit_text, row
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.drawing.numbers import duration, plain
from llmprof.tui.timeline.nav import Scene, step_gaps

GUTTER: Final = 15
"""Cells left of the chart: what a row shows."""
MOST_STREAMS: Final = 4
MOST_DEVICES: Final = 7
"""Beside the primary one."""
NAME_CELLS: Final = 5
"""A kernel at least this wide carries its name."""
_GAP_CELLS: Final = 9
_LABEL_CELLS: Final = 9
_MOST_NAMED: Final = 200_000
"""Items in view up to which wide ones are looked for."""
_SLOW, _OUTLIER = 1.15, 1.5
"""× median latency from which a step is slow, and an outlier."""

_RANKS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"

Cell = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Cells:
    """The chart of one lane: borders of its cells on the axis and in the lane's time."""

    now: Scene
    index: int
    edges: Ints
    times: Ints

    @property
    def width(self) -> int:
        return len(self.edges) - 1

    @cached_property
    def cell_ns(self) -> float:
        return max(1, int(self.edges[-1] - self.edges[0])) / self.width

    def columns(self, positions: Ints) -> Ints:
        """The column in which each position lies; may be outside the chart."""
        found: Ints = np.floor((positions - self.edges[0]) / self.cell_ns).astype(np.int64)
        return found


def spans(cells: Sequence[Cell]) -> Row:
    return tuple(
        Span("".join(c for c, _ in same), role)
        for role, same in groupby(cells, key=lambda cell: cell[1])
    )


def write(cells: list[Cell], at: int, text: str, role: str) -> None:
    """Text over cells; wide characters are left out, a cell holds one column."""
    for i, char in enumerate(text):
        if 0 <= at + i < len(cells):
            cells[at + i] = (char if cell_len(char) == 1 else "?", role)


def mark(cells: list[Cell], edges: Ints, spot: tuple[int, int]) -> None:
    """Reverse what a selection covers, at least one cell."""
    length = max(1, int(edges[-1] - edges[0]))
    first = int((spot[0] - int(edges[0])) * len(cells) // length)
    last = int(-(-(spot[1] - int(edges[0])) * len(cells) // length))
    for x in range(max(0, first), min(len(cells), max(last, first + 1))):
        char, role = cells[x]
        cells[x] = (char, f"{role} select".strip())


def latency_role(ratio: float, accent: str) -> str:
    """By × median: the engine's colour, amber, amber and bold."""
    if not ratio > _SLOW:
        return accent
    return "outlier" if ratio > _OUTLIER else "warn"


def steps(
    cells: Cells, accent: str, glyphs: Glyphs, spot: tuple[int, int] | None, tall: int = 1
) -> list[Row]:
    """Steps as bars of their latency; as blocks with number and latency where there is room,
    dashed where nobody marked the steps.

    The blocks stand in the last of the ``tall`` rows, the bars reach over all of them: to twice
    the median.
    """
    if cells.now.lanes.lanes[cells.index].detected:
        glyphs = replace(glyphs, track=glyphs.dashed)
    best = np.zeros(cells.width)
    line: list[Cell] = [(" ", "")] * cells.width
    for track in cells.now.axis.tracks(cells.index):
        first = max(0, int(np.searchsorted(track.bounds_ns, cells.times[0], "right")) - 1)
        last = min(track.steps + 1, int(np.searchsorted(track.bounds_ns, cells.times[-1], "left")))
        if last <= first:
            continue
        number = np.arange(first, last)
        wall = track.wall_ns[first:last]
        begin = cells.now.axis.positions(cells.index, track.bounds_ns[first:last])
        left, right = cells.columns(begin), cells.columns(begin + np.maximum(wall, 1) - 1)
        ratio = wall / max(1.0, track.median_ns)
        _slowest(best, line, left, right, ratio, number, glyphs)
        for n, a, b, w in (
            zip(number.tolist(), left.tolist(), right.tolist(), wall.tolist(), strict=True)
            if last - first <= cells.width
            else ()
        ):
            if b - max(0, a) + 1 >= _LABEL_CELLS:
                _label(line, (n, a, b, w), track, accent, glyphs)
    rows = _latency_bars(best, line, tall, accent, glyphs)
    if spot is not None:
        mark(rows[-1], cells.edges, spot)
    return [spans(cells_of_row) for cells_of_row in rows]


def _slowest(
    best: Floats,
    line: list[Cell],
    left: Ints,
    right: Ints,
    ratio: Floats,
    number: Ints,
    glyphs: Glyphs,
) -> None:
    """The slowest step of each cell; prefill has no latency of a step and is a flat line."""
    width = len(line)
    decode = number > 0
    low, high = np.clip(left, 0, width - 1), np.clip(right, 0, width - 1)
    np.maximum.at(best, low[decode], ratio[decode])
    np.maximum.at(best, high[decode], ratio[decode])
    for a, b, r in (
        zip(low.tolist(), high.tolist(), ratio.tolist(), strict=True)
        if len(low) <= 2 * width
        else ()
    ):
        if b - a > 1:
            best[a : b + 1] = np.maximum(best[a : b + 1], r)
    for a, b in zip(low[~decode].tolist(), high[~decode].tolist(), strict=True):
        for x in range(a, b + 1):
            line[x] = (glyphs.done, "dim")


def _latency_bars(
    best: Floats, line: list[Cell], tall: int, accent: str, glyphs: Glyphs
) -> list[list[Cell]]:
    """Rows from the top; what ``line`` holds already (blocks, prefill) stays in the last one."""
    top = len(glyphs.bars) - 1
    rows: list[list[Cell]] = [[(" ", "")] * len(line) for _ in range(tall - 1)]
    rows.append(line)
    taken = [cell != (" ", "") for cell in line]
    for x in np.flatnonzero(best > 0).tolist():
        level = min(top * tall, max(1, round(best[x] / 2 * top * tall)))
        role = latency_role(best[x], accent)
        for y in range(tall):
            part = min(top, max(0, level - (tall - 1 - y) * top))
            if part and (y < tall - 1 or not taken[x]):
                rows[y][x] = (glyphs.bars[part], role)
        if best[x] > _OUTLIER and not (tall == 1 and taken[x]):
            rows[0][x] = (glyphs.outlier, role)
    return rows


def _label(
    line: list[Cell], step: tuple[int, int, int, int], track: Track, accent: str, glyphs: Glyphs
) -> None:
    number, left, right, wall = step
    a, b = max(0, left), min(len(line) - 1, right)
    ratio = wall / max(1.0, track.median_ns)
    role = "dim" if number == 0 else latency_role(ratio, accent)
    for x in range(a, b + 1):
        line[x] = (glyphs.track, role)
    if left == a:
        line[a] = (glyphs.tick[1], role)
    name = "whole trace" if track.whole else "prefill" if number == 0 else str(number)
    parts = [name, duration(wall)]
    if 0 < number <= len(track.kinds):
        parts.insert(1, track.kinds[number - 1])
    if 0 < number <= len(track.loads) and (load := track.loads[number - 1]):
        parts.append(load)
    if number and track.steps > 2:
        parts.append(f"{ratio:.2f}× median")
        if ratio > _OUTLIER:
            parts.append(glyphs.outlier)
    text = ""
    for part in parts:
        longer = f"{text} {part}" if text else part
        if len(longer) + 3 > b - a + 1:
            break
        text = longer
    if text:
        write(line, a + 1, f"{text} ", f"{role} strong")


def bars(spent: Ints, names: Sequence[str], edges: Ints, tall: int, glyphs: Glyphs) -> list[Row]:
    """``tall`` rows: the height is the busy share of a cell, its colours the categories' shares,
    stacked with the largest below; of one row, one behind the other as ``mixed`` has them."""
    length = np.maximum(1, np.diff(edges))
    share = np.minimum(1.0, spent.sum(axis=0) / length)
    top = len(glyphs.bars) - 1
    heights = np.where(share > 0, np.maximum(1, np.round(share * top * tall)), 0).astype(int)
    stacks = stacked(spent, tall) if tall > 1 else [[i] for i in mixed(spent)]
    out = []
    for line in range(tall - 1, -1, -1):
        levels = np.clip(heights - line * top, 0, top).tolist()
        cells = []
        for level, height, stack in zip(levels, heights.tolist(), stacks, strict=True):
            # The bar's own rows, not those of the chart: all of it shares the colours.
            own = min(tall - 1, line * tall * top // max(1, height)) if tall > 1 else 0
            cells.append((glyphs.bars[level], category_role(names[stack[own]]) if level else ""))
        out.append(spans(cells))
    return out


def mixed(spent: Ints) -> list[int]:
    """Of each cell one of the categories that have time in it, so that along the row each comes as
    often as its share of the busy time: a row of nothing but products hides no 20 % of other work.

    Args:
        spent: ns of each category in each cell, shape (categories, cells).
    """
    owed = [0.0] * len(spent)
    chosen = []
    for column in spent.T.tolist():
        whole = sum(column)
        best, most = 0, -math.inf
        for i, ns in enumerate(column):
            if ns > 0:
                owed[i] += ns / whole
                if owed[i] > most:
                    best, most = i, owed[i]
        if whole > 0:
            owed[best] -= 1
        chosen.append(best)
    return chosen


def stacked(spent: Ints, tall: int) -> list[list[int]]:
    """Of each cell ``tall`` categories from the bottom up, the largest below."""
    stacks = []
    order = np.argsort(-spent, axis=0, kind="stable")
    whole = np.maximum(1, spent.sum(axis=0))
    upto = np.cumsum(np.take_along_axis(spent, order, axis=0), axis=0) / whole
    # The category at the middle of each of the bar's rows.
    for place in (np.arange(tall) + 0.5) / tall:
        at = np.minimum((upto < place).sum(axis=0), len(spent) - 1)
        stacks.append(order[at, np.arange(order.shape[1])].tolist())
    return [list(column) for column in zip(*stacks, strict=True)]


def letters(spent: Ints, names: Sequence[str], inside: Ints, glyphs: Glyphs) -> list[Cell]:
    """A letter of each cell, in the mix that the row has (``mixed``); a line where the device
    waits."""
    chosen, busy = mixed(spent), spent.sum(axis=0).tolist()
    out: list[Cell] = []
    for i, time, traced in zip(chosen, busy, inside.tolist(), strict=True):
        if time > 0:
            out.append((category_letter(names[i]), category_role(names[i])))
        else:
            out.append((glyphs.track, "track") if traced > 0 else (" ", ""))
    return out


def name_items(line: list[Cell], cells: Cells, work: LaneWork, traced: Track | None) -> None:
    """Names of the kernels, and lengths of the gaps, that are wide enough to carry them."""
    if traced is None or all(t is not traced for t in cells.now.axis.tracks(cells.index)):
        return
    first, last = work.within(int(cells.times[0]), int(cells.times[-1]))
    if last - first > _MOST_NAMED:
        return
    length = work.end_ns[first:last] - work.start_ns[first:last]
    wide = first + np.flatnonzero(length >= NAME_CELLS * cells.cell_ns)
    begin = cells.columns(cells.now.axis.positions(cells.index, work.start_ns[wide]))
    finish = cells.columns(cells.now.axis.positions(cells.index, work.end_ns[wide] - 1))
    for item, left, right in zip(wide.tolist(), begin.tolist(), finish.tolist(), strict=True):
        a, b = max(0, left), min(len(line) - 1, right)
        if b - a + 1 < NAME_CELLS:
            continue
        letter = category_letter(work.category(item))
        text = fit_text(f"{letter} {clean(work.short_name(item))}", b - a)
        write(line, a, text, category_role(work.category(item)))
    step = traced.step_at(int(cells.times[0]))
    until = traced.step_at(int(cells.times[-1]))
    if until - step > len(line) // _GAP_CELLS or last - first > 20 * len(line):
        return
    for number in range(step, until + 1):
        for gap in step_gaps(work, traced, number):
            if gap.end_ns - gap.start_ns < _GAP_CELLS * cells.cell_ns:
                continue
            spot = cells.now.axis.place(cells.index, gap.start_ns, gap.end_ns)
            left, right = cells.columns(np.array([spot[0], spot[1] - 1])).tolist()
            a, b = max(0, left), min(len(line) - 1, right)
            text = f" {duration(gap.end_ns - gap.start_ns)} idle "
            if len(text) > b - a + 1:
                text = f" {duration(gap.end_ns - gap.start_ns)} "
            if len(text) <= b - a + 1:
                write(line, (a + b + 1 - len(text)) // 2, text, "warn")


def joined(cells: Cells, lane: Lane, glyphs: Glyphs) -> Row:
    """What joins the lanes of the ranks: the number of the rank that the others wait for in a
    collective, and an upright line where all of them are in it and bytes move."""
    line: list[Cell] = [(" ", "")] * cells.width
    if lane.joined is not None:
        moving = lane.joined.transfer.between(cells.times)
        waits = {r: curve.between(cells.times) for r, curve in lane.joined.waits.items()}
        most = np.zeros(cells.width, np.int64)
        for rank, spent in waits.items():
            char = _RANKS[rank] if rank < len(_RANKS) else "+"
            for x in np.flatnonzero((spent > most) & (spent > moving)).tolist():
                line[x] = (char, "warn")
            most = np.maximum(most, spent)
        for x in np.flatnonzero((moving > 0) & (moving >= most)).tolist():
            line[x] = (glyphs.tick[1], category_role("communication"))
    return row(Span("waits for rank".ljust(GUTTER), "dim"), *spans(line))


def device_name(lane: Lane, device: int) -> str:
    """``rank 1 · GPU 1``, or the GPU alone."""
    known = None if lane.joined is None else lane.joined.names.get(device)
    return known or f"GPU {device}"


def others(cells: Cells, lane: Lane, inside: Ints, glyphs: Glyphs) -> list[Row]:
    """A row of letters a further device of the engine: its own busy time, its own gaps."""
    out = []
    for work in lane.others[:MOST_DEVICES]:
        spent = np.stack([curve.between(cells.times) for curve in work.curves.values()])
        line = letters(spent, list(work.curves), inside, glyphs)
        name_items(line, cells, work, lane.traced)
        out.append(row(Span(fit_text(device_name(lane, work.device), GUTTER), "dim"), *spans(line)))
    return out


def streams(cells: Cells, work: LaneWork, inside: Ints, glyphs: Glyphs) -> list[Row]:
    """A row of letters a stream."""
    out = []
    for stream in work.streams[:MOST_STREAMS]:
        curves = work.stream_curves(stream)
        spent = np.stack([curve.between(cells.times) for curve in curves.values()])
        line = letters(spent, list(curves), inside, glyphs)
        out.append(row(Span(fit_text(f"stream {stream}", GUTTER), "dim"), *spans(line)))
    return out


def api(cells: Cells, lane: Lane, glyphs: Glyphs) -> Row:
    """How much of a cell the host spends in CUDA calls; names where there is room."""
    share = lane.api_busy.between(cells.times) / np.maximum(1, np.diff(cells.edges))
    top = len(glyphs.bars) - 1
    line: list[Cell] = [
        (glyphs.bars[min(top, max(1, round(s * top)))], "dim") if s > 0 else (" ", "")
        for s in share.tolist()
    ]
    rows = lane.api
    first = int(np.searchsorted(rows.start_ns, cells.times[0], "left"))
    last = int(np.searchsorted(rows.start_ns, cells.times[-1], "left"))
    if last - first <= _MOST_NAMED:
        length = rows.end_ns[first:last] - rows.start_ns[first:last]
        for i in (first + np.flatnonzero(length >= NAME_CELLS * cells.cell_ns)).tolist():
            a, b = cells.columns(
                cells.now.axis.positions(
                    cells.index, np.array([rows.start_ns[i], rows.end_ns[i] - 1])
                )
            ).tolist()
            a, b = max(0, a), min(len(line) - 1, b)
            if b - a + 1 >= NAME_CELLS:
                write(line, a, fit_text(api_name(lane, i), b - a), "")
    return row(Span("API calls".ljust(GUTTER), "dim"), *spans(line))


def api_name(lane: Lane, index: int) -> str:
    """``cudaLaunchKernel`` of ``cudaLaunchKernel_v7000``."""
    name = lane.api.names.get(int(lane.api.name_id[index]), "call")
    return clean(name).partition("_v")[0]


def series_of(now: Scene, index: int) -> tuple[Series, ...]:
    """What is known along the axis: samples of the round itself, else step by step, else NVML's."""
    lane = now.lanes.lanes[index]
    if not isinstance(now.axis, StepAxis):
        return (*(s for found in lane.samples.values() for s in found[:1]), *lane.series)
    if own := lane.samples.get(now.axis.key):
        return (*own, *lane.series[:1])
    return (*_by_step(lane, now.axis), *lane.series[:1])


@lru_cache(maxsize=64)
def _by_step(lane: Lane, axis: StepAxis) -> tuple[Series, ...]:
    track = lane.track(axis.key)
    if track is None:
        return ()
    out = []
    for name, unit, values, note in lane.step_series:
        known = [i for i, v in enumerate(values[: track.steps]) if v is not None]
        if known:
            at = np.array(known, np.int64) + 1
            numbers = np.array([values[i] for i in known], np.float64)
            bounds = track.bounds_ns
            out.append(Series.of(name, unit, bounds[at], bounds[at + 1], numbers, note))
    return tuple(out)


def series_row(series: Series, times: Ints, glyphs: Glyphs) -> Row:
    """Bars from zero to the largest value that the series has; the mean of what is in view."""
    values = series.means(times)
    overall = series.means(times[[0, -1]])[0]
    top = len(glyphs.bars) - 2  # never a full cell: rows of two series must not grow together
    most = max(float(np.max(series.value)), 1e-9)
    line: list[Cell] = []
    for value in values.tolist():
        if value != value:
            line.append((" ", ""))
        else:
            line.append((glyphs.bars[min(top, max(1, round(value / most * top)))], "dim"))
    mean = plain(float(overall)) if overall == overall else "–"
    name = {"SM clock": "SM", "SM active": "SM busy"}.get(series.name, series.name)
    label = fit_text(f"{name} {series.unit}", GUTTER - 6)
    return row(Span(label, "dim"), Span(f"{mean:>5} "), *spans(line))
