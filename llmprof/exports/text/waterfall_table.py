"""One waterfall in plain text: from engine a's step to engine b's, category by category."""

from __future__ import annotations

from llmprof.analysis.device.waterfall import Waterfall, names, part_name, verdict_words
from llmprof.analysis.view.falls import Fall
from llmprof.plaintext import one_line, told_apart
from llmprof.records import Unavailable

BAR = 24


def render(fall: Fall) -> list[str]:
    """Words, the table, and how its numbers came about."""
    chosen = fall.traced if isinstance(fall.timing, Unavailable) else fall.timing
    if isinstance(chosen, Unavailable):
        return [f"  no waterfall: {one_line(chosen.reason)}"]
    return [f"  {one_line(verdict_words(chosen))}", "", *_table(chosen), f"  {_basis(chosen)}"]


def _table(fall: Waterfall) -> list[str]:
    a, b = told_apart(names(fall), 18)
    width_a, width_b = max(9, len(a)), max(9, len(b))
    head = f"  {'ms a step':<24} {a:>{width_a}} {b:>{width_b}} {'change':>9}"
    largest = max((abs(p.delta_ns) for p in fall.parts), default=0) or 1
    lines = [head]
    for p in fall.parts:
        bar = "#" * round(BAR * abs(p.delta_ns) / largest)
        sign = "-" if p.delta_ns < 0 else "+"
        lines.append(
            f"  {one_line(part_name(fall, p), 24):<24} {p.a_ns / 1e6:{width_a}.3f}"
            f" {p.b_ns / 1e6:{width_b}.3f} {p.delta_ns / 1e6:+9.3f} {(sign + bar) if bar else ''}"
        )
    lines.append(
        f"  {'step':<24} {fall.a_ns / 1e6:{width_a}.3f} {fall.b_ns / 1e6:{width_b}.3f}"
        f" {fall.delta_ns / 1e6:+9.3f}"
    )
    return [line.rstrip() for line in lines]


def _basis(fall: Waterfall) -> str:
    return f"{fall.provenance}: {one_line(fall.note)}"
