"""One traced decode step of each engine on a common time axis: work by category, gaps as gaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from llmprof.analysis.categories import IDLE
from llmprof.analysis.snapshot import Snapshot
from llmprof.analysis.traced import EngineTrace, RunTrace, StepItem, StepView
from llmprof.records import Unavailable
from llmprof.tui.cells import Row, Span, clean, fit, fit_text, row, rule, spread, wrap
from llmprof.tui.numbers import plain
from llmprof.tui.view import Lane, View

LETTERS: Final = {
    "quantised GEMV/GEMM": "Q",
    "GEMM/GEMV": "G",
    "attention": "A",
    "norm": "N",
    "RoPE": "R",
    "activation/elementwise": "E",
    "KV cache": "K",
    "embedding": "B",
    "sampling": "S",
    "copy": "C",
    "quantise": "Z",
}
"""Colour is never the only carrier: under each cell stands the letter of its category."""
OTHER: Final = "O"
_GAPS: Final = 3


def category_role(category: str) -> str:
    """The palette's role of a category."""
    return f"category{LETTERS.get(category, OTHER)}"


def page(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    """The step in focus of every engine on show."""
    trace = view.trace
    if trace is None:
        going = snapshot.state == "running"
        text = "the trace is read when the run is over" if going else "reading the trace…"
        return [row(Span(text, "dim"))]
    if isinstance(trace, Unavailable):
        return [row(Span(line, "dim")) for line in wrap(clean(trace.reason), width)]
    lanes = view.lanes(snapshot)
    shown = [(lane, _step(trace, lane, view.step)) for lane in lanes]
    views = [step for _, step in shown if isinstance(step, StepView)]
    span_ns = max((step.wall_ns for step in views), default=1)
    start, end = int(span_ns * view.start), int(span_ns * view.end)
    out = [_title(trace, view, start, end, width)]
    room = (height - 6 - 6 * len(lanes)) // max(1, len(lanes))
    tall = max(1, min(6, room))
    for lane, step in shown:
        out += _lane(trace, lane, step, view, (start, end), width, tall)
    out += _axis(start, end, width)
    out += _legend(views, width)
    focus = next((s for lane, s in shown if lane.focused or len(shown) == 1), None)
    if isinstance(focus, StepView):
        out += _inspector(trace.engine(focus.label), focus, view, width)
        out += _gaps(focus, width, view)
    return out


def step_count(trace: RunTrace | Unavailable | None) -> int:
    """Traced decode steps of the engine that has the fewest; 0 without a trace."""
    if trace is None or isinstance(trace, Unavailable):
        return 0
    counts = [e.record.steps for e in trace.engines if e.record is not None]
    return min(counts, default=0)


def _step(trace: RunTrace, lane: Lane, step: int) -> StepView | Unavailable:
    for engine in trace.engines:
        if clean(engine.label) == clean(lane.engine.label):
            return engine.step_view(step)
    return Unavailable("not in the trace")


def _title(trace: RunTrace, view: View, start: int, end: int, width: int) -> Row:
    left = row(
        Span("traced step ", "strong"),
        Span(f"{view.step}", "bright"),
        Span(f" of {step_count(trace)}", "dim"),
    )
    right = row(Span(f"{_us(start)} – {_us(end)}   left/right step · + - zoom · [ ] item", "dim"))
    return rule(left, right, width, view.glyphs.track)


def _lane(
    trace: RunTrace,
    lane: Lane,
    step: StepView | Unavailable,
    view: View,
    window: tuple[int, int],
    width: int,
    tall: int,
) -> list[Row]:
    mark = view.glyphs.focus if lane.focused else view.glyphs.lane
    name = row(Span(f"{mark}{clean(lane.engine.label)}", f"{lane.accent} strong"))
    if isinstance(step, Unavailable):
        lines = wrap(clean(step.reason), width - 2)
        return [fit(name, width), *(row(Span(f"  {line}", "dim")) for line in lines)]
    kernels = sum(item.kind == "kernel" for item in step.items)
    share = 100 * step.busy_ns / max(1, step.wall_ns)
    facts = row(
        Span("step ", "dim"), Span(f"{step.wall_ns / 1e6:6.2f} ms", ""),
        Span("   busy ", "dim"), Span(f"{step.busy_ns / 1e6:6.2f}", ""),
        Span(f" {share:3.0f} %", "dim"),
        Span("   idle ", "dim"), Span(f"{step.idle_ns / 1e6:6.2f}", "warn" if share < 70 else ""),
        Span("   kernels ", "dim"), Span(f"{kernels:4d}", ""),
    )  # fmt: skip
    strip = _strip(step.items, window, step.wall_ns, view, width, tall)
    marker = _marker(step.items, window, view, width) if lane.focused or view.zoom else []
    return [spread(name, facts, width), *strip, *marker]


def _strip(
    items: Sequence[StepItem],
    window: tuple[int, int],
    wall_ns: int,
    view: View,
    width: int,
    tall: int,
) -> list[Row]:
    """Bars whose height is the busy share of a cell, and the letters of their categories.

    Behind the end of the step (``wall_ns``) there is nothing: that is not waiting.
    """
    cells = _cells(items, window, width)
    bars = view.glyphs.bars
    levels = (len(bars) - 1) * tall
    heights = [round(levels * share) or (1 if share > 0 else 0) for _, share in cells]
    out: list[Row] = []
    for line in range(tall - 1, -1, -1):
        spans = []
        for (category, _), full in zip(cells, heights, strict=True):
            level = min(len(bars) - 1, max(0, full - line * (len(bars) - 1)))
            spans.append(Span(bars[level], category_role(category) if level else "track"))
        out.append(tuple(spans))
    start, stop = window
    end = min(width, max(0, -((start - wall_ns) * width // max(1, stop - start))))
    letters = tuple(
        Span(LETTERS.get(c, OTHER) if share > 0 else view.glyphs.track,
             category_role(c) if share > 0 else "track")
        for c, share in cells[:end]
    )  # fmt: skip
    over = fit_text(f"{view.glyphs.tick[1]} step over", width - end) if end < width else ""
    return [*out, (*letters, Span(over, "dim"))]


def _cells(
    items: Sequence[StepItem], window: tuple[int, int], width: int
) -> list[tuple[str, float]]:
    """For each cell the category with the most time in it, and its busy share, 0–1.

    Level of detail: hundreds of kernels may share a cell, or one kernel hundreds of cells.
    """
    start, end = window
    length = max(1, end - start)
    time_in: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(width)]
    for item in items:
        if item.kind == "gap" or item.end_ns <= start or item.start_ns >= end:
            continue
        a = (max(item.start_ns, start) - start) * width / length
        b = (min(item.end_ns, end) - start) * width / length
        first, last = int(a), min(width - 1, int(b))
        for cell in range(first, last + 1):
            covered = min(b, cell + 1) - max(a, cell)
            if covered > 0:
                time_in[cell][item.category] += covered
    out = []
    for found in time_in:
        if found:
            category = max(found, key=lambda name: found[name])
            out.append((category, min(1.0, sum(found.values()))))
        else:
            out.append((IDLE, 0.0))
    return out


def _marker(
    items: Sequence[StepItem], window: tuple[int, int], view: View, width: int
) -> list[Row]:
    """A mark under the selected item."""
    if not items:
        return []
    item = items[min(view.item, len(items) - 1)]
    start, end = window
    middle = (item.start_ns + item.end_ns) // 2
    if not start <= middle < end:
        return [()]
    at = min(width - 1, (middle - start) * width // max(1, end - start))
    return [row(" " * at, Span(view.glyphs.outlier if view.glyphs.ascii else "┬", "bright"))]


def _axis(start: int, end: int, width: int) -> list[Row]:
    count = max(2, width // 20)
    line = [" "] * width
    for i in range(count + 1):
        text = _us(start + (end - start) * i // count)
        at = min(width - len(text), (width - 1) * i // count)
        line[at : at + len(text)] = list(text)
    return [row(Span("".join(line)[:width], "dim"))]


def _legend(views: Sequence[StepView], width: int) -> list[Row]:
    totals: defaultdict[str, int] = defaultdict(int)
    for step in views:
        for item in step.items:
            if item.kind != "gap":
                totals[item.category] += item.end_ns - item.start_ns
    rows: list[Row] = []
    spans: list[Span] = []
    used = 0
    for category in sorted(totals, key=lambda name: -totals[name]):
        letter = LETTERS.get(category, OTHER)
        text = f"{letter} {category}"
        if used + len(text) + 3 > width and spans:
            rows.append(tuple(spans))
            spans, used = [], 0
        spans += [Span(text, category_role(category)), Span("   ")]
        used += len(text) + 3
    return [*rows, tuple(spans)] if spans else rows


def _inspector(engine: EngineTrace, step: StepView, view: View, width: int) -> list[Row]:
    """What is known of the selected item."""
    if not step.items:
        return []
    index = min(view.item, len(step.items) - 1)
    item = step.items[index]
    role = "warn" if item.kind == "gap" else category_role(item.category)
    head = row(
        Span(f"{index + 1}/{len(step.items)} ", "dim"),
        Span(clean(item.short_name), f"{role} strong"),
    )
    length = item.end_ns - item.start_ns
    facts = [
        f"{item.kind} · {item.category}" if item.kind != "gap" else "GPU idle",
        f"{_us(length)} at {_us(item.start_ns)}",
        f"{100 * length / max(1, step.wall_ns):.2f} % of the step",
    ]
    if item.kind != "gap":
        facts += [f"stream {item.stream}", "graph node" if item.in_graph else "own launch"]
    if item.row >= 0:
        k, i = engine.kernel_rows, item.row
        facts += [
            f"grid {k.grid_x[i]}×{k.grid_y[i]}×{k.grid_z[i]}",
            f"block {k.block_x[i]}×{k.block_y[i]}×{k.block_z[i]}",
            f"{k.registers[i]} registers",
            f"shared {k.static_shared[i]} + {k.dynamic_shared[i]} B",
        ]
    title = rule(row(Span("selected", "strong")), (), width, view.glyphs.track)
    lines = wrap(" · ".join(facts), width - 2)
    return [title, fit(head, width), *(row(Span(f"  {line}")) for line in lines)]


def _gaps(step: StepView, width: int, view: View) -> list[Row]:
    """The largest gaps of the step."""
    gaps = sorted(
        (item for item in step.items if item.kind == "gap"),
        key=lambda item: item.start_ns - item.end_ns,
    )
    out = [rule(row(Span("largest gaps", "strong")), (), width, view.glyphs.track)]
    for gap in gaps[:_GAPS]:
        length = gap.end_ns - gap.start_ns
        text = fit_text(clean(gap.short_name), max(10, width - 24))
        out.append(row(Span(f"{_us(length):>10}", "warn"), Span(f"  {text}")))
    return out


def _us(ns: int) -> str:
    """``812 ns``, ``43.2 µs``, ``14.9 ms``."""
    if abs(ns) < 1000:
        return f"{ns} ns"
    return f"{plain(ns / 1e3)} µs" if abs(ns) < 1_000_000 else f"{plain(ns / 1e6)} ms"
