"""How busy the GPU was in the traced steps, one row an engine; operators where there is no GPU."""

from __future__ import annotations

from typing import Final

from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_label, row, rule, width_of
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import known, number
from llmprof.tui.live.phase import progress_bar
from llmprof.tui.view import Lane, View

_OPERATORS: Final = 4
_LONGEST: Final = 60
_WAITING: Final = 0.7
"""Below this busy share the GPU mostly waits for the host: worth a colour."""


def section(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """A heading and one row an engine; nothing without a trace."""
    if not isinstance(view.trace, RunTrace) or not snapshot.engines:
        return []
    engines = {clean(engine.label): engine for engine in view.trace.engines}
    lanes = view.lanes(snapshot)
    name = min(max(len(clean(lane.engine.label)) for lane in lanes), width // 4) + 3
    title = row(Span("a traced step", "strong"))
    note = row(Span("means · more on timeline and compare", "dim"))
    out = [rule(title, note, width, view.glyphs.track)]
    for lane in lanes:
        engine = engines.get(clean(lane.engine.label))
        out.append(fit(_row(engine, lane, name, width, view.glyphs), width))
    return out


def _row(engine: EngineTrace | None, lane: Lane, name: int, width: int, glyphs: Glyphs) -> Row:
    mark = glyphs.focus if lane.focused else glyphs.lane
    label = fit_label(clean(lane.engine.label), name - 2)
    start = row(Span(mark, lane.accent), Span(f"{label} ", f"{lane.accent} strong"))
    if engine is None:
        return (*start, Span("GPU n/a: not in the trace", "dim"))
    return (*start, *_busy(engine, width - name, lane.accent, glyphs))


def _busy(engine: EngineTrace, width: int, accent: str, glyphs: Glyphs) -> Row:
    report = engine.kernels
    if isinstance(report, Unavailable):
        return _operators(engine, report)
    wall, busy, idle = report.wall_ms_per_step, report.busy_ms_per_step, report.idle_ms_per_step
    for value in (wall, busy):
        if isinstance(value, Unavailable):
            return row(Span(f"GPU n/a: {clean(value.reason)}", "dim"))
    if isinstance(wall, Unavailable) or isinstance(busy, Unavailable) or wall <= 0:
        return row(Span("GPU n/a: the steps have no length", "dim"))
    share = min(1.0, busy / wall)
    kernels = report.kernels_per_step
    head = row(Span("GPU busy ", "dim"), Span(f"{share * 100:3.0f} %  "))
    tail = row(
        Span(f"{number(kernels):>6}", "" if known(kernels) else "dim"),
        Span(" kernels   idle ", "dim"),
        Span("≤" if report.idle_at_most else "", "dim"),
        Span(f"{number(idle):>5} ms", "warn strong" if share < _WAITING else ""),
    )
    room = min(_LONGEST, width - width_of(head) - width_of(tail))
    return (*head, *progress_bar(share, max(4, room), glyphs, accent), *tail)


def _operators(engine: EngineTrace, why: Unavailable) -> Row:
    """Shares of the top operators by self time; without any, why there are no kernels."""
    if not engine.operators:
        return row(Span(f"GPU n/a: {clean(why.reason)}", "dim"))
    total = sum(o.total_ns for o in engine.operators) or 1
    spans = [Span("operators  ", "dim")]
    for o in engine.operators[:_OPERATORS]:
        share = f"{100 * o.total_ns / total:.0f} %   "
        spans += [Span(f"{clean(o.name)} "), Span(share, "dim")]
    return tuple(spans)
