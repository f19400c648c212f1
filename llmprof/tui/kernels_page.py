"""Categories of all engines side by side, the way from one to the other, and the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmprof.analysis.categories import IDLE
from llmprof.analysis.kernels import KernelReport, KernelSummary
from llmprof.analysis.snapshot import Snapshot
from llmprof.analysis.traced import EngineTrace, Fall, RunTrace
from llmprof.analysis.waterfall import Waterfall, verdict_words
from llmprof.records import Unavailable
from llmprof.tui.cells import Row, Span, beside, clean, fit, fit_text, row, rule, wrap
from llmprof.tui.trace_page import LETTERS, OTHER, category_role
from llmprof.tui.view import Lane, View

SORTS: Final = ("total", "count", "mean", "name")
_BAR: Final = 16


def page(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Waterfalls first: they say why; then every kernel."""
    trace = view.trace
    if trace is None:
        going = snapshot.state == "running"
        text = "the trace is read when the run is over" if going else "reading the trace…"
        return [row(Span(text, "dim"))]
    if isinstance(trace, Unavailable):
        return [row(Span(line, "dim")) for line in wrap(clean(trace.reason), width)]
    out: list[Row] = []
    for fall in trace.falls:
        out += _fall(fall, width, view)
    lanes = view.lanes(snapshot)
    if width < 110 and len(lanes) > 1:
        lanes = [lane for lane in lanes if lane.focused] or lanes[:1]
    each = (width - 2 * (len(lanes) - 1)) // max(1, len(lanes))
    blocks = [_table(trace, lane, each, view) for lane in lanes]
    return [*out, *beside(blocks, [each] * len(blocks), 2)] if blocks else out


def _fall(fall: Fall, width: int, view: View) -> list[Row]:
    chosen = fall.traced if isinstance(fall.timing, Unavailable) else fall.timing
    names = f"{clean(fall.a)} → {clean(fall.b)}"
    if isinstance(chosen, Unavailable):
        return [row(Span(f"{names}: {clean(chosen.reason)}", "dim"))]
    right = row(Span("ms a step", "dim"))
    out = [rule(row(Span(names, "strong")), right, width, view.glyphs.track)]
    out.append(
        row(Span(f"{chosen.delta_ns / 1e6:+.2f} ms a step: ", "bright"), verdict_words(chosen))
    )
    out += _parts(chosen, width, view)
    note = f"{chosen.provenance}: {clean(chosen.note)}"
    return [*out, *(row(Span(line, "dim")) for line in wrap(note, width)), ()]


def _parts(fall: Waterfall, width: int, view: View) -> list[Row]:
    largest = max((abs(p.delta_ns) for p in fall.parts), default=0) or 1
    out = []
    for p in fall.parts:
        role = "warn" if p.category == IDLE else category_role(p.category)
        letter = " " if p.category == IDLE else LETTERS.get(p.category, OTHER)
        bar = view.glyphs.bars[-1] * round(_BAR * abs(p.delta_ns) / largest)
        change = "good" if p.delta_ns < 0 else "fail"
        line = row(
            Span(f"{letter} {fit_text(p.category, 24)}", role),
            Span(f"{p.a_ns / 1e6:9.3f}"), Span(f"{p.b_ns / 1e6:9.3f}"),
            Span(f"{p.delta_ns / 1e6:+9.3f}", change if bar else "dim"), Span(f"  {bar}", change),
        )  # fmt: skip
        out.append(fit(line, width))
    total = f"  {'step':<24}{fall.a_ns / 1e6:9.3f}{fall.b_ns / 1e6:9.3f}{fall.delta_ns / 1e6:+9.3f}"
    return [*out, row(Span(total, "strong"))]


def _table(trace: RunTrace, lane: Lane, width: int, view: View) -> list[Row]:
    """Kernels of one engine, or its operators where the engine runs on a CPU."""
    engine = next((e for e in trace.engines if clean(e.label) == clean(lane.engine.label)), None)
    name = row(Span(clean(lane.engine.label), f"{lane.accent} strong"))
    order = row(Span(f"by {view.sort} (o)", "dim"))
    out = [rule(name, order, width, view.glyphs.track)]
    if engine is None:
        return out
    report = engine.kernels
    if isinstance(report, Unavailable):
        return [*out, *_operators(engine, report, width)]
    return [*out, *_kernels(report, width, view.sort)]


def _kernels(report: KernelReport, width: int, sort: str) -> list[Row]:
    room = max(12, width - 27)
    head = f"  {'kernel':<{room}}{'share':>7}{'a step':>8}{'mean µs':>9}"
    out = [row(Span(head[:width], "dim"))]
    for k in sorted(report.kernels, key=_order(sort)):
        per_step = "" if isinstance(k.count_per_step, Unavailable) else f"{k.count_per_step:.0f}"
        line = row(
            Span(f"{LETTERS.get(k.category, OTHER)} ", category_role(k.category)),
            Span(fit_text(clean(k.short_name), room)),
            Span(f"{100 * k.share:6.1f}%{per_step:>8}{k.mean_ns / 1e3:9.2f}"),
        )
        out.append(fit(line, width))
    return out


def _order(sort: str):  # type: ignore[no-untyped-def]
    def key(k: KernelSummary) -> tuple[float, str]:
        value = {"total": -k.total_ns, "count": -k.count, "mean": -k.mean_ns, "name": 0}[sort]
        return float(value), k.short_name

    return key


def _operators(engine: EngineTrace, why: Unavailable, width: int) -> list[Row]:
    if not engine.operators:
        return [row(Span(line, "dim")) for line in wrap(clean(why.reason), width)]
    total = sum(o.total_ns for o in engine.operators) or 1
    room = max(12, width - 27)
    head = f"{'operator, self time':<{room}}{'share':>8}{'calls':>9}{'ms':>9}"
    out: list[Row] = [row(Span(head[:width], "dim"))]
    operators: Sequence = engine.operators  # type: ignore[type-arg]
    for o in operators[:60]:
        text = f"{100 * o.total_ns / total:7.1f}%{o.calls:9d}{o.total_ns / 1e6:9.2f}"
        out.append(fit(row(fit_text(clean(o.name), room), text), width))
    return out
