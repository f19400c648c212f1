"""The engines as a table: columns of a fixed width, as many as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_label, fit_text, row
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import cost, interval, number, span
from llmprof.tui.live.phase import phase_span, progress_bar
from llmprof.tui.view import Lane

NAME: Final = 12


@dataclass(frozen=True)
class Column:
    title: str
    unit: str
    width: int
    render: Callable[[Lane, int], Span]


def _number(title: str, unit: str, field: str, scale: float = 1.0, width: int = 7) -> Column:
    return Column(
        title, unit, width, lambda lane, w: span(getattr(lane.engine, field), w, "", scale)
    )


TOK_S: Final = Column(
    "tok/s",
    "",
    7,
    lambda lane, width: span(lane.engine.tok_s, width, f"{lane.accent} strong"),
)
INTERVAL: Final = Column(
    "interval",
    "",
    13,
    lambda lane, width: Span(
        (
            interval(lane.engine.tok_s_low, lane.engine.tok_s_high) or number(lane.engine.tok_s_low)
        ).rjust(width),
        "dim",
    ),
)
LATENCIES: Final = (
    _number("TTFT", "ms", "ttft_ms"),
    _number("ITL p50", "ms", "itl_p50_ms", width=8),
    _number("p95", "ms", "itl_p95_ms"),
    _number("p99", "ms", "itl_p99_ms"),
    _number("max", "ms", "itl_max_ms"),
)
REST: Final = (
    _number("prefill", "tok/s", "prefill_tok_s", width=8),
    _number("modelled", "GB/s", "bandwidth_gb_s", width=9),
    _number("of peak", "%", "roofline_share", 100.0, width=8),
    _number("J/token", "", "joule_per_token", width=8),
    Column("tracing", "cost %", 9, lambda lane, w: span(cost(lane.engine.slowdown), w, "", 100.0)),
    Column("steps", "timed", 7, lambda lane, w: Span(str(lane.engine.steps_done).rjust(w))),
)
MEASURED: Final = _number("measured", "GB/s", "measured_gb_s", width=9)
ALL: Final = (TOK_S, INTERVAL, *LATENCIES, *REST[:3], MEASURED, *REST[3:])
LIVE: Final = (TOK_S, *LATENCIES, *REST, INTERVAL)


def name_cell(lane: Lane, glyphs: Glyphs, width: int = NAME) -> Row:
    mark = glyphs.focus if lane.focused else glyphs.lane
    name = fit_label(clean(lane.engine.label), width - 2)
    return row(Span(mark, lane.accent), Span(f"{name} ", f"{lane.accent} strong"))


def split(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Columns in as many lines of at most ``width`` cells as they need."""
    lines: list[list[Column]] = [[]]
    used = 0
    for column in columns:
        if used + column.width > width and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append(column)
        used += column.width
    return lines


def name_width(lanes: Sequence[Lane], room: int) -> int:
    """Cells for the longest label, at least ``NAME`` and at most ``room``."""
    longest = max((cell_len(clean(lane.engine.label)) for lane in lanes), default=0)
    return max(NAME, min(longest + 3, room))


def tables(lanes: Sequence[Lane], width: int, glyphs: Glyphs) -> list[Row]:
    """Every number of every engine; a second table follows where one is too wide."""
    out: list[Row] = []
    lines = split(ALL, width - NAME)
    name = name_width(lanes, width - max(sum(c.width for c in columns) for columns in lines))
    for columns in lines:
        if out:
            out.append(())
        out.append(_titles([c.title for c in columns], columns, name))
        if any(c.unit for c in columns):
            out.append(_titles([c.unit for c in columns], columns, name))
        for lane in lanes:
            cells = [column.render(lane, column.width) for column in columns]
            out.append((*name_cell(lane, glyphs, name), *cells))
    return out


def _titles(names: Sequence[str], columns: Sequence[Column], left: int) -> Row:
    cells = "".join(name.rjust(column.width) for name, column in zip(names, columns, strict=True))
    return row(Span(" " * left + cells, "dim"))


def live_table(lanes: Sequence[Lane], width: int, glyphs: Glyphs) -> list[Row]:
    """One row an engine, with phase and progress: for engines too many to stand side by side."""
    phase, bar = 12, 8
    columns = split(LIVE, width - NAME - phase - bar)[0]
    head = "".join(c.title.rjust(c.width) for c in columns)
    units = "".join(c.unit.rjust(c.width) for c in columns)
    out = [
        row(Span(" " * NAME + "phase".ljust(phase + bar) + head, "dim")),
        row(Span(" " * (NAME + phase + bar) + units, "dim")),
    ]
    for lane in lanes:
        start = name_cell(lane, glyphs)
        if lane.failed:
            text = fit_text(lane.reason, width - NAME - 2)
            out.append(fit((*start, Span(f"{glyphs.failed} {text}", "fail")), width))
            continue
        now = phase_span(lane, phase - 1)
        cells = [column.render(lane, column.width) for column in columns]
        progress = progress_bar(lane.engine.progress, bar, glyphs, lane.accent)
        out.append(fit((*start, now, Span(" "), *progress, *cells), width))
    return out
