"""Engines as lanes on one axis, from the whole run to single kernels; gaps are drawn as gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmprof.analysis.snapshot import Snapshot
from llmprof.analysis.timeline_axis import RoundKey
from llmprof.records import Unavailable
from llmprof.runfile.trace_rows import Ints
from llmprof.tui import timeline_inspector, timeline_rows
from llmprof.tui.cells import Row, Span, clean, fit, fit_text, row, rule, spread, wrap
from llmprof.tui.marks import category_letter, category_role
from llmprof.tui.numbers import duration
from llmprof.tui.timeline_nav import Scene, place, scene
from llmprof.tui.timeline_rows import GUTTER, Cells
from llmprof.tui.view import Lane, View

_INSPECTOR: Final = 7
"""Rows that the inspector wants; it gets what the lanes leave beyond."""
_TALLEST: Final = 8


@dataclass(frozen=True)
class Layout:
    """The rows, and which lane and which part of the axis a cell belongs to."""

    rows: list[Row]
    lanes: tuple[tuple[int, int, int], ...] = ()
    """(first row, row behind, lane)."""
    edges: Ints | None = None
    """Positions at the borders of the chart's cells."""

    def at(self, x: int, y: int) -> tuple[int | None, int | None]:
        """Lane and position at a cell of the page."""
        lane = next((i for first, last, i in self.lanes if first <= y < last), None)
        if self.edges is None or not 0 <= x - GUTTER < len(self.edges) - 1:
            return lane, None
        left, right = (int(p) for p in self.edges[x - GUTTER : x - GUTTER + 2])
        return lane, (left + right) // 2


def page(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    return layout(snapshot, view, width, height).rows


def layout(snapshot: Snapshot, view: View, width: int, height: int) -> Layout:
    """The page, or why there is nothing to draw."""
    trace = view.trace
    if trace is None:
        going = snapshot.state == "running"
        text = "the trace is read when the run is over" if going else "reading the trace…"
        return Layout([row(Span(text, "dim"))])
    if isinstance(trace, Unavailable):
        return Layout([row(Span(line, "dim")) for line in wrap(clean(trace.reason), width)])
    now = scene(view)
    if now is None:
        return Layout([row(Span("no round of this run has a finished decode step", "dim"))])
    chart = max(10, width - GUTTER)
    start, end = now.window
    edges = start + np.arange(chart + 1, dtype=np.int64) * (end - start) // chart
    rows: list[Row] = [_title(now, view, chart, width)]
    shown = view.lanes(snapshot)
    most = 1 if height < 30 else 3
    tall = _tall(now, view, shown, height, most)
    spots = []
    legend: dict[str, int] = {}
    for lane in shown:
        first = len(rows)
        rows += _lane(now, view, lane, edges, (tall, most), width, legend)
        spots.append((first, len(rows), lane.index))
    rows.append(_axis(now, view, edges, width))
    rows += _legend(legend, width)
    focus = next((lane for lane in shown if lane.focused or len(shown) == 1), None)
    if focus is not None:
        rows += timeline_inspector.inspector(now, view, focus, width)
    return Layout(rows, tuple(spots), edges)


def _tall(now: Scene, view: View, shown: Sequence[Lane], height: int, most: int) -> int:
    """Rows of the kernel bars: what the height allows beside everything else."""
    fixed = 0
    for lane in shown:
        mine = now.lanes.lanes[lane.index]
        fixed += 2  # name, steps
        fixed += 1 if not isinstance(mine.work, Unavailable) else 0
        fixed += bool(len(mine.api)) + min(most, len(timeline_rows.series_of(now, lane.index)))
        if view.timeline.streams and not isinstance(mine.work, Unavailable):
            fixed += min(len(mine.work.streams), timeline_rows.MOST_STREAMS)
    room = height - 3 - _INSPECTOR - fixed
    return max(1, min(_TALLEST, room // max(1, len(shown))))


def _round_name(key: RoundKey) -> str:
    name, index = key
    return f"timing round {index + 1}" if name == "timing" else f"{name} round"


def _title(now: Scene, view: View, chart: int, width: int) -> Row:
    start, end = now.window
    timeline = view.timeline
    if timeline.align == "time":
        what = "by time · whole run"
    else:
        key = timeline.key if timeline.key in now.lanes.keys else now.lanes.keys[0]
        what = f"by step · {_round_name(key)}"
    left = row(Span("timeline ", "strong"), Span(what, "dim"))
    facts = f"{duration(end - start)} in view · {duration((end - start) / chart)} a cell"
    return rule(left, row(Span(facts, "dim")), width, view.glyphs.track)


def _lane(
    now: Scene,
    view: View,
    lane: Lane,
    edges: Ints,
    size: tuple[int, int],
    width: int,
    legend: dict[str, int],
) -> list[Row]:
    glyphs = view.glyphs
    tall, most = size
    mine = now.lanes.lanes[lane.index]
    mark = glyphs.focus if lane.focused else glyphs.lane
    name = row(Span(f"{mark}{clean(lane.engine.label)}", f"{lane.accent} strong"))
    tracks = now.axis.tracks(lane.index)
    if not tracks:
        return [fit(name, width), row(Span("  not in this round", "dim"))]
    times = now.axis.times(lane.index, edges)
    cells = Cells(now, lane.index, edges, times)
    chosen = view.timeline.selected
    spot = place(now, lane.index, chosen) if lane.index == now.index else None
    step_only = chosen is not None and chosen.item is None and chosen.gap is None
    traced_here = any(t.key == mine.traced_key for t in tracks)
    kernels = traced_here and not isinstance(mine.work, Unavailable)
    steps = timeline_rows.steps(
        cells, lane.accent, glyphs, spot if step_only else None, 1 if kernels else tall
    )
    out = [row(Span(" " * GUTTER), *line) for line in steps[:-1]]
    out.append(row(Span("steps".ljust(GUTTER), "dim"), *steps[-1]))
    facts: Row = ()
    if not traced_here:
        facts = row(Span("no kernels: not the traced round", "dim"))
    elif isinstance(mine.work, Unavailable):
        why = fit_text(f"kernels n/a: {clean(mine.work.reason)}", width - GUTTER)
        out.append(row(Span(" " * GUTTER), Span(why, "dim")))
    else:
        work = mine.work
        traced = mine.traced
        by_category = mine.spent(times)
        names = list(by_category)
        spent = np.stack(list(by_category.values())) if names else None
        inside = mine.inside(times)
        if spent is None:
            spent, names = np.zeros((1, len(times) - 1), np.int64), ["other"]
        for category, total in zip(names, spent.sum(axis=1).tolist(), strict=True):
            if total:
                legend[category] = legend.get(category, 0) + total
        seen: tuple[int, int] | None = work.within(int(times[0]), int(times[-1]))
        if mine.cells is not None and times[-1] > mine.cells.start_ns:
            seen = None  # those in cells are not counted
        facts = _facts(spent, inside, seen)
        bars = timeline_rows.bars(spent, names, edges, tall, glyphs)
        out += [row(Span(" " * GUTTER), *line) for line in bars]
        letters = timeline_rows.letters(spent, names, inside, glyphs)
        timeline_rows.name_items(letters, cells, work, traced)
        if chosen is not None and not step_only and spot is not None:
            timeline_rows.mark(letters, edges, spot)
        out.append(row(Span("kernels".ljust(GUTTER), "dim"), *timeline_rows.spans(letters)))
        if view.timeline.streams:
            out += timeline_rows.streams(cells, work, inside, glyphs)
    if len(mine.api) and traced_here:
        out.append(timeline_rows.api(cells, mine, glyphs))
    for series in timeline_rows.series_of(now, lane.index)[:most]:
        out.append(timeline_rows.series_row(series, times, glyphs))
    return [spread(name, facts, width), *(fit(line, width) for line in out)]


def _facts(spent: Ints, inside: Ints, items: tuple[int, int] | None) -> Row:
    """Of what is in view; ``items`` ``None``: not all of them are known."""
    wall, busy = int(inside.sum()), int(spent.sum())
    if not wall:
        return row(Span("not traced here", "dim"))
    share = 100 * busy / wall
    idle = max(0, wall - busy)
    return row(
        Span("GPU busy ", "dim"), Span(f"{duration(busy):>8}"), Span(f" {share:3.0f} %", "dim"),
        Span("   idle ", "dim"), Span(f"{duration(idle):>8}", "warn" if share < 70 else ""),
        Span("   kernels ", "dim"),
        Span(f"{max(0, items[1] - items[0]):6d}" if items else "   n/a", "" if items else "dim"),
    )  # fmt: skip


def _axis(now: Scene, view: View, edges: Ints, width: int) -> Row:
    """Time since the left end of the axis; since the step's begin where one step fills the view."""
    chart = len(edges) - 1
    start, end = int(edges[0]), int(edges[-1])
    origin, name = 0, "time"
    slots = getattr(now.axis, "slots", None)
    if slots is not None:
        step = int(np.searchsorted(slots, (start + end) // 2, "right")) - 1
        step = min(max(step, 0), len(slots) - 2)
        length = int(slots[step + 1] - slots[step])
        origin = int(slots[step]) if (end - start) < 1.5 * length else int(now.axis.home[0])
        name = f"in step {step}" if (end - start) < 1.5 * length else "from step 1"
        if step == 0 and name == "in step 0":
            name = "prefill"
    line = [" "] * chart
    count = max(2, chart // 18)
    for i in range(count + 1):
        value = start + (end - start) * i // count - origin
        text = _tick(value, (end - start) // count)
        at = min(chart - len(text), (chart - 1) * i // count)
        line[at : at + len(text)] = list(text)
    return fit(
        row(Span(fit_text(name, GUTTER - 1) + " ", "dim"), Span("".join(line), "dim")), width
    )


def _tick(value: int, apart: int) -> str:
    """A time with as many digits as neighbouring ticks need to differ."""
    for unit, name in ((1_000_000_000, "s"), (1_000_000, "ms"), (1000, "µs")):
        if apart * 20 >= unit or (abs(value) >= unit and unit == 1000):
            digits = next((d for d in range(4) if apart * 10**d >= 10 * unit), 3)
            return f"{round(value / unit, digits) + 0.0:.{digits}f} {name}"
    return f"{value} ns"


def _legend(totals: dict[str, int], width: int) -> list[Row]:
    """One row: categories in view by their time, as many as fit."""
    spans: list[Span] = []
    used = 0
    for category in sorted(totals, key=lambda name: -totals[name]):
        text = f"{category_letter(category)} {clean(category)}"
        if used + len(text) > width:
            break
        spans += [Span(text, category_role(category)), Span("  ")]
        used += len(text) + 2
    return [tuple(spans[:-1])] if spans else []
