"""What two engines spend on the same purpose, as rows of the compare page."""

from __future__ import annotations

from typing import Final

from llmprof.analysis.view.roles import RolePair, RoleRow, gb_s, names_text, role_pairs
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_text, row, rule, wrap
from llmprof.tui.view import Lane, View

_ROLE: Final = 12
_SMALL_MS: Final = 0.0005


def table(trace: RunTrace, a: Lane | None, b: Lane, view: View, width: int) -> list[Row]:
    """A line a role: ms a step and GB/s of both, the change, and the kernels."""
    right = trace.engines[b.index].role_rows
    left = right if a is None else trace.engines[a.index].role_rows
    pairs = role_pairs(left, right)
    title = row(Span("by purpose", "strong"))
    note = row(Span("kernels (u)", "dim"))
    out = [rule(title, note, width, view.glyphs.track)]
    if isinstance(pairs, Unavailable):
        return [*out, *(row(Span(t, "dim")) for t in wrap(clean(pairs.reason), width))]
    head = f"{'ms a step':<{_ROLE}}"
    if a is not None:
        head += f"{'A':>9}{'GB/s':>7}"
    head += f"{'B' if a is not None else '':>9}{'GB/s':>7}"
    head += f"{'change':>9}  " if a is not None else "  "
    out.append(fit(row(Span(head, "dim"), Span("kernels", "dim")), width))
    out += [_line(pair, a is not None, width) for pair in pairs]
    notes = []
    if any(_rate(r)[0] == "~" for p in pairs for r in (p.a, p.b) if r and _rate(r)):
        notes.append("~ modelled: packed bytes of the matrices over the kernels' time")
    for lane in (a, b):
        if lane is None:
            continue
        report = trace.engines[lane.index].roles
        if not isinstance(report, Unavailable) and report.why_unknown:
            notes.append(f"{clean(lane.engine.label)}: {clean(report.why_unknown)}")
    return [*out, *(row(Span(t, "dim")) for note in notes for t in wrap(note, width))]


def _line(pair: RolePair, both: bool, width: int) -> Row:
    spans = [Span(fit_text(clean(pair.role), _ROLE), "strong")]
    names = []
    for side in (pair.a, pair.b) if both else (pair.b,):
        if side is None:
            spans.append(Span(f"{'–':>9}{'':7}", "dim"))
            names.append("–")
        else:
            spans += [Span(f"{side.ms_per_step:9.3f}"), Span(f"{_rate(side):>7}", "dim")]
            names.append(clean(names_text(side.names, 1)))
    if both:
        change = pair.delta_ms
        tint = "dim" if abs(change) < _SMALL_MS else "good" if change < 0 else "fail"
        spans.append(Span(f"{change:+9.3f}", tint))
    spans.append(Span(f"  {' | '.join(names)}", "dim"))
    return fit(tuple(spans), width)


def _rate(side: RoleRow) -> str:
    value, how = gb_s(side)
    if isinstance(value, Unavailable):
        return ""
    return f"{'~' if how == 'modelled' else ''}{value:.0f}"
