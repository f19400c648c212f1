"""Engines as lanes on one axis, from the whole run to single kernels; gaps are drawn as gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from llmprof.analysis.timeline.axis import Lane as TimeLane
from llmprof.analysis.timeline.axis import RoundKey
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_text, row, rule, spread
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.drawing.numbers import duration
from llmprof.tui.timeline import host_row as timeline_host_row
from llmprof.tui.timeline import inspector as timeline_inspector
from llmprof.tui.timeline import rows as timeline_rows
from llmprof.tui.timeline.nav import Scene, place, scene
from llmprof.tui.timeline.rows import GUTTER, Cells
from llmprof.tui.view import Lane, View, trace_or_why

_AROUND: Final = 3
"""Title, axis, legend."""
_INSPECTOR: Final = 7
"""Rows that are the inspector's in any case: the lanes keep their height most of the time."""
_TALLEST: Final = 14

RowKind = Literal[
    "name", "steps", "bars", "kernels", "joined", "devices", "streams", "api", "host", "series"
]
_LaneRows = list[tuple[RowKind, Row]]
_GIVE_WAY: Final[tuple[tuple[bool, RowKind], ...]] = (
    (False, "series"), (True, "series"), (False, "streams"), (False, "api"), (False, "bars"),
    (False, "host"), (False, "steps"), (False, "devices"), (False, "joined"), (True, "streams"),
    (True, "bars"), (True, "devices"), (True, "joined"),
)  # fmt: skip
"""(of the lane in focus, kind of row) that a small terminal does without, in this order."""


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


_WIDE: Final = 100
"""Below this an engine's name needs the room."""


@dataclass
class _Legend:
    """What is in view, ns of all lanes."""

    categories: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)

    def rows(self, width: int) -> list[Row]:
        """One row: categories and kinds of host time by their time, as many as fit."""
        host = timeline_host_row.host_legend(self.host)
        room = width - len("  host ") - sum(len(text) + 2 for text, _ in host) if host else width
        spans = _entries(
            [
                (f"{category_letter(category)} {clean(category)}", category_role(category))
                for category in sorted(self.categories, key=lambda name: -self.categories[name])
            ],
            room,
        )
        if host:
            used = sum(len(span.text) for span in spans)
            gap = Span("  " if spans else "")
            spans += [gap, Span("host ", "dim"), *_entries(host, width - used - len("  host "))]
        return [tuple(spans)] if spans else []


def _entries(entries: Sequence[tuple[str, str]], room: int) -> list[Span]:
    """The (text, role)s that fit into ``room`` cells, two cells between them."""
    spans: list[Span] = []
    used = 0
    for text, role in entries:
        if used + len(text) > room:
            break
        spans += [Span("  "), Span(text, role)]
        used += len(text) + 2
    return spans[1:]


def page(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    return layout(snapshot, view, width, height).rows


def layout(snapshot: Snapshot, view: View, width: int, height: int) -> Layout:
    """The page, or why there is nothing to draw."""
    trace = trace_or_why(snapshot, view, width)
    if isinstance(trace, list):
        return Layout(trace)
    now = scene(view)
    if now is None:
        return Layout([row(Span("no round of this run has a finished decode step", "dim"))])
    chart = max(10, width - GUTTER)
    start, end = now.window
    edges = start + np.arange(chart + 1, dtype=np.int64) * (end - start) // chart
    shown = view.lanes(snapshot)
    focus = next((lane for lane in shown if lane.focused or len(shown) == 1), None)
    below = timeline_inspector.inspector(now, view, focus, width) if focus else []
    room = height - _AROUND - max(len(below), _INSPECTOR)
    most = 1 if height < 30 else 3
    size = (_tall(now, view, shown, room, most), most)
    legend = _Legend()
    lanes = [_lane(now, view, lane, edges, size, width, legend) for lane in shown]
    rows: list[Row] = [_title(now, view, chart, width)]
    spots = []
    at = 0 if focus is None else shown.index(focus)
    for lane, kept in zip(shown, _fitting(lanes, at, height - _AROUND - len(below)), strict=True):
        if kept:
            spots.append((len(rows), len(rows) + len(kept), lane.index))
            rows += kept
    if len(spots) < len(shown):
        rows[0] = _title(now, view, chart, width, f"{len(spots)} of {len(shown)} engines · ")
    rows.append(_axis(now, view, edges, width))
    rows += legend.rows(width)
    return Layout(rows + below, tuple(spots), edges)


def _tall(now: Scene, view: View, shown: Sequence[Lane], room: int, most: int) -> int:
    """Rows of the kernel bars: what the room allows beside everything else."""
    fixed = 0
    for lane in shown:
        mine = now.lanes.lanes[lane.index]
        fixed += 2  # name, steps
        fixed += 1 if not isinstance(mine.work, Unavailable) else 0
        fixed += min(len(mine.others), timeline_rows.MOST_DEVICES)
        fixed += mine.joined is not None
        fixed += bool(len(mine.api)) + (mine.host is not None)
        fixed += min(most, len(timeline_rows.series_of(now, lane.index)))
        if view.timeline.streams and not isinstance(mine.work, Unavailable):
            fixed += min(len(mine.work.streams), timeline_rows.MOST_STREAMS)
    return max(1, min(_TALLEST, (room - fixed) // max(1, len(shown))))


def _fitting(lanes: Sequence[_LaneRows], focus: int, room: int) -> list[list[Row]]:
    """The rows of every lane that fit into ``room``: the inspector below must stay in view.

    Rows give way in the order of ``_GIVE_WAY``, the lane in focus last; then whole lanes, those
    furthest from the focus first, whose rows are empty then.
    """
    kept = [list(lane) for lane in lanes]

    def over() -> bool:
        return sum(map(len, kept)) > room

    furthest = sorted(range(len(kept)), key=lambda i: -abs(i - focus))
    for mine, kind in _GIVE_WAY:
        for i in furthest:
            if over() and (i == focus) == mine:
                kept[i] = [line for line in kept[i] if line[0] != kind]
    for i in furthest:
        if over() and i != focus:
            kept[i] = []
    return [[line for _, line in lane] for lane in kept]


def _round_name(key: RoundKey) -> str:
    name, index = key
    return f"timing round {index + 1}" if name == "timing" else f"{name} round"


def _title(now: Scene, view: View, chart: int, width: int, note: str = "") -> Row:
    start, end = now.window
    timeline = view.timeline
    if now.unknown:
        what = "no steps are known · by time"
    elif timeline.align == "time":
        what = "by time" if timeline.window else "by time · whole run"
    else:
        key = timeline.key if timeline.key in now.lanes.keys else now.lanes.keys[0]
        what = f"by step · {_round_name(key)}"
    left = row(Span("timeline ", "strong"), Span(what, "dim"))
    facts = f"{note}{duration(end - start)} in view"
    if width >= 100 or not note:
        facts += f" · {duration((end - start) / chart)} a cell"
    return rule(left, row(Span(facts, "dim")), width, view.glyphs.track)


def _lane(
    now: Scene,
    view: View,
    lane: Lane,
    edges: Ints,
    size: tuple[int, int],
    width: int,
    legend: _Legend,
) -> _LaneRows:
    glyphs = view.glyphs
    tall, most = size
    mine = now.lanes.lanes[lane.index]
    mark = glyphs.focus if lane.focused else glyphs.lane
    name = row(Span(f"{mark}{clean(lane.engine.label)}", f"{lane.accent} strong"))
    tracks = now.axis.tracks(lane.index)
    if not tracks:
        return [("name", fit(name, width)), ("steps", row(Span("  not in this round", "dim")))]
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
    out: _LaneRows = [("bars", row(Span(" " * GUTTER), *line)) for line in steps[:-1]]
    out.append(
        (
            "steps",
            row(Span(_steps_name(mine).ljust(GUTTER), "dim"), *steps[-1]),
        )
    )
    facts: Row = ()
    if not traced_here:
        facts = row(Span("no kernels: not the traced round", "dim"))
    elif isinstance(mine.work, Unavailable):
        why = fit_text(f"kernels n/a: {clean(mine.work.reason)}", width - GUTTER)
        out.append(("kernels", row(Span(" " * GUTTER), Span(why, "dim"))))
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
                legend.categories[category] = legend.categories.get(category, 0) + total
        seen: tuple[int, int] | None = work.within(int(times[0]), int(times[-1]))
        if mine.cells is not None and times[-1] > mine.cells.start_ns:
            seen = None  # those in cells are not counted
        device = f"GPU {work.device}" if mine.others else "GPU"
        facts = _facts(spent, inside, seen, device)
        # Of the step that fills the view, exactly, without the air around it: the numbers that the
        # inspector and the compare page have of that step.
        if (step := _step_in_view(now)) is not None and traced is not None and step <= traced.steps:
            bounds = traced.bounds_ns[step : step + 2]
            exact = np.array([[int(c.between(bounds)[0])] for c in work.curves.values()], np.int64)
            seen = work.within(int(bounds[0]), int(bounds[1]))
            of_step = f"step {step} · {device}" if step else f"prefill · {device}"
            of_step = of_step if width >= _WIDE else device
            facts = _facts(exact, np.diff(bounds), seen, of_step)
        bars = timeline_rows.bars(spent, names, edges, tall, glyphs)
        out += [("bars", row(Span(" " * GUTTER), *line)) for line in bars]
        letters = timeline_rows.letters(spent, names, inside, glyphs)
        timeline_rows.name_items(letters, cells, work, traced)
        if chosen is not None and not step_only and spot is not None:
            timeline_rows.mark(letters, edges, spot)
        named = mine.others or mine.joined is not None
        title = timeline_rows.device_name(mine, work.device) if named else "kernels"
        line = row(Span(title.ljust(GUTTER), "dim"), *timeline_rows.spans(letters))
        out.append(("kernels", line))
        if mine.joined is not None:
            out.append(("joined", timeline_rows.joined(cells, mine, glyphs)))
        further = timeline_rows.others(cells, mine, inside, glyphs)
        out += [("devices", line) for line in further]
        if view.timeline.streams:
            streams = timeline_rows.streams(cells, work, inside, glyphs)
            out += [("streams", line) for line in streams]
    if len(mine.api) and traced_here:
        out.append(("api", timeline_rows.api(cells, mine, glyphs)))
    if mine.host is not None and traced_here:
        out.append(("host", timeline_host_row.host(cells, mine.host, legend.host)))
    for series in timeline_rows.series_of(now, lane.index)[:most]:
        out.append(("series", timeline_rows.series_row(series, times, glyphs)))
    head: _LaneRows = [("name", spread(name, facts, width))]
    return head + [(kind, fit(line, width)) for kind, line in out]


def _steps_name(lane: TimeLane) -> str:
    if any(track.whole for track in lane.tracks):
        return "no steps"
    return "steps found" if lane.detected else "steps"


def _facts(spent: Ints, inside: Ints, items: tuple[int, int] | None, device: str) -> Row:
    """Of what is in view; ``items`` ``None``: not all of them are known."""
    wall, busy = int(inside.sum()), int(spent.sum())
    if not wall:
        return row(Span("nothing traced in view", "dim"))
    share = 100 * busy / wall
    idle = max(0, wall - busy)
    return row(
        Span(f"{device} busy ", "dim"), Span(f"{duration(busy):>8}"),
        Span(f" {share:3.0f} %", "dim"),
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
        step, length = _middle_step(slots, start, end)
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


def _middle_step(slots: Ints, start: int, end: int) -> tuple[int, int]:
    """The step in the middle of a window of the step axis, and the length of its slot."""
    step = int(np.searchsorted(slots, (start + end) // 2, "right")) - 1
    step = min(max(step, 0), len(slots) - 2)
    return step, int(slots[step + 1] - slots[step])


def _step_in_view(now: Scene) -> int | None:
    """The one step that fills the view, whole; ``None`` where there are more, or a part of one."""
    slots = getattr(now.axis, "slots", None)
    if slots is None:
        return None
    start, end = now.window
    step, length = _middle_step(slots, start, end)
    whole = start <= int(slots[step]) and end >= int(slots[step + 1])
    return step if whole and end - start < 1.5 * length else None


def _tick(value: int, apart: int) -> str:
    """A time with as many digits as neighbouring ticks need to differ."""
    for unit, name in ((1_000_000_000, "s"), (1_000_000, "ms"), (1000, "µs")):
        if apart * 20 >= unit or (abs(value) >= unit and unit == 1000):
            digits = next((d for d in range(4) if apart * 10**d >= 10 * unit), 3)
            return f"{round(value / unit, digits) + 0.0:.{digits}f} {name}"
    return f"{value} ns"
