"""What two engines spend on the same purpose, as rows of the compare page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmprof.analysis.view.roles import RolePair, RoleRow, gb_s, names_text, role_pairs
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_text, row, rule, wrap
from llmprof.tui.view import Lane, Sort, View

_ROLE: Final = 12
_SMALL_MS: Final = 0.0005


def table(trace: RunTrace, a: Lane | None, b: Lane, view: View, width: int) -> list[Row]:
    """A line a role: ms a step and GB/s of both, the change, and the kernels."""
    right = trace.engines[b.index].role_rows
    left = right if a is None else trace.engines[a.index].role_rows
    pairs = role_pairs(left, right)
    title = row(Span("by purpose", "strong"))
    sort = view.compare.sort
    shown = {"name": "order in a layer"}.get(sort, sort)
    note = row(Span(f"kernels (u) · sorted by {shown} (o)", "dim"))
    out = [rule(title, note, width, view.glyphs.track)]
    if isinstance(pairs, Unavailable):
        return [*out, *(row(Span(t, "dim")) for t in wrap(clean(pairs.reason), width))]
    head = f"{'ms a step':<{_ROLE}}"
    rated = any(_rate(side) for pair in pairs for side in (pair.a, pair.b) if side)
    rate = f"{'GB/s':>7}" if rated else ""
    if a is not None:
        head += f"{'A':>9}{rate}"
    head += f"{'B' if a is not None else '':>9}{rate}"
    head += f"{'change':>9}  " if a is not None else "  "
    out.append(fit(row(Span(head, "dim"), Span("kernels", "dim")), width))
    both = a is not None
    out += [_line(pair, both, rated, width) for pair in _sorted(pairs, sort, both)]
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


def _sorted(pairs: Sequence[RolePair], sort: Sort, both: bool) -> list[RolePair]:
    """By what a step spends, or how much that differs; else in the order in a layer, as given."""

    def spent(side: RoleRow | None) -> float:
        return -1.0 if side is None else side.ms_per_step

    if sort == "name":
        return list(pairs)
    if sort == "change" and both:
        return sorted(pairs, key=lambda pair: -abs(pair.delta_ms))
    return sorted(pairs, key=lambda pair: -spent(pair.a if sort == "A" and both else pair.b))


def _line(pair: RolePair, both: bool, rated: bool, width: int) -> Row:
    spans = [Span(fit_text(clean(pair.role), _ROLE), "strong")]
    names = []
    for side in (pair.a, pair.b) if both else (pair.b,):
        if side is None:
            spans.append(Span(f"{'–':>9}{'':{7 * rated}}", "dim"))
            names.append("–")
        else:
            spans.append(Span(f"{side.ms_per_step:9.3f}"))
            spans.append(Span(f"{_rate(side):>7}" if rated else "", "dim"))
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
