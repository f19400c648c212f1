"""One engine's numbers in a box; two to four stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmprof.records import Maybe
from llmprof.tui.drawing.cells import (
    Row,
    Span,
    beside,
    clean,
    fit,
    fit_label,
    fit_text,
    row,
    spread,
    width_of,
    wrap,
)
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import big, cost, interval, known, number
from llmprof.tui.live.columns import live_table
from llmprof.tui.live.phase import phase_span, progress_bar
from llmprof.tui.view import Lane

NARROWEST: Final = 38
"""Cells of a card that shows all of its numbers."""
HEIGHT: Final = 9
_LEFT: Final = 19
"""Big digits of the longest number."""
_GRID: Final = 33
_WIDE: Final = _LEFT + _GRID + 2
"""Inner width from which tok/s is drawn in big digits."""


def engines(lanes: Sequence[Lane], width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """Cards where they fit side by side in ``width`` × ``height``, else a table."""
    if not lanes:
        return [row(Span("no engine has started yet", "dim"))]
    fits = width // len(lanes)
    if fits < NARROWEST or height < HEIGHT + 2 + len(lanes):
        return live_table(lanes, width, glyphs)
    widths = [fits] * len(lanes)
    widths[-1] = width - fits * (len(lanes) - 1)
    return beside([card(lane, w, glyphs) for lane, w in zip(lanes, widths, strict=True)], widths)


def card(lane: Lane, width: int, glyphs: Glyphs) -> list[Row]:
    """``HEIGHT`` rows of ``width`` cells."""
    inner = width - 4
    if lane.failed:
        body = _failure(lane, inner, HEIGHT - 2, glyphs)
    elif inner >= _WIDE:
        body = [_phase(lane, inner, glyphs), (), *_wide(lane, inner, glyphs)]
    else:
        body = [_phase(lane, inner, glyphs), _speed(lane, inner), *_grid(lane, inner)]
    edge = "fail" if lane.failed else lane.accent if lane.focused else "track"
    return _box(lane, body, width, glyphs, edge)


def _box(lane: Lane, body: Sequence[Row], width: int, glyphs: Glyphs, edge: str) -> list[Row]:
    top_left, top_right, low_left, low_right, dash, side = tuple(glyphs.box)
    inner = width - 4
    label = fit_label(clean(lane.engine.label), min(inner - 2, len(clean(lane.engine.label))))
    mark = glyphs.focus if lane.focused else glyphs.lane
    head = row(
        Span(f"{top_left}{dash} ", edge),
        Span(mark, lane.accent),
        Span(f"{label} ", f"{lane.accent} strong"),
    )
    room = width - width_of(head) - 5
    detail = clean(lane.engine.detail)
    detail = fit_text(detail, min(room, len(detail))) if room > 6 and detail else ""
    tail = row(Span(f" {detail} " if detail else "", "dim"), Span(f"{dash}{top_right}", edge))
    fill = width - width_of(head) - width_of(tail)
    out: list[Row] = [(*head, Span(dash * fill, edge), *tail)]
    out += [(Span(f"{side} ", edge), *fit(line, inner), Span(f" {side}", edge)) for line in body]
    return [*out, row(Span(low_left + dash * (width - 2) + low_right, edge))]


def _failure(lane: Lane, inner: int, lines: int, glyphs: Glyphs) -> list[Row]:
    reason = wrap(lane.reason, inner)
    if len(reason) > lines - 2:
        rest = " ".join(reason[lines - 3 :])
        reason = [*reason[: lines - 3], fit_text(rest, inner)]
    body = [row(Span(f"{glyphs.failed} failed", "fail")), (), *(row(r) for r in reason)]
    return body + [()] * (lines - len(body))


def _phase(lane: Lane, inner: int, glyphs: Glyphs) -> Row:
    engine = lane.engine
    name = phase_span(lane, 16)
    share = "" if engine.progress is None else f"{engine.progress * 100:3.0f} %"
    room = inner - 17 - 6
    bar = progress_bar(engine.progress, room, glyphs, lane.accent)
    return (name, Span(" "), *bar, Span(share.rjust(6), "dim"))


def _speed(lane: Lane, inner: int) -> Row:
    engine = lane.engine
    left = row(
        Span(number(engine.tok_s).rjust(5), f"{lane.accent} strong"),
        Span(" tok/s  ", "dim"),
        Span(interval(engine.tok_s_low, engine.tok_s_high), "dim"),
    )
    return spread(left, _steps(lane), inner)


def _steps(lane: Lane) -> Row:
    done = lane.engine.steps_done
    return row(Span(f"{done} steps" if done else "", "dim"))


def _fact(label: str, value: Maybe, unit: str, widths: tuple[int, int], scale: float = 1.0) -> Row:
    """Label, number right-aligned in 5 cells, unit; ``widths`` of label and unit."""
    is_known = known(value)
    return row(
        Span(fit_text(label, widths[0]), "dim"),
        Span(number(value, scale).rjust(5), "" if is_known else "dim"),
        Span(f" {fit_text(unit if is_known else '', widths[1])}", "dim"),
    )


def _grid(lane: Lane, inner: int) -> list[Row]:
    """Five rows of two columns; what they don't need is air between them."""
    e = lane.engine
    left, right = (8, 4), (7, 2)
    widths = [sum(pair) + 6 for pair in (left, right)]
    rows = [
        [_fact("TTFT", e.ttft_ms, "ms", left), _fact("ITL p50", e.itl_p50_ms, "ms", right)],
        [
            _fact("prefill", e.prefill_tok_s, "t/s", left),
            _fact("    p95", e.itl_p95_ms, "ms", right),
        ],
        [
            _fact("modelled", e.bandwidth_gb_s, "GB/s", left),
            _fact("    p99", e.itl_p99_ms, "ms", right),
        ],
        [
            _fact("of peak", e.roofline_share, "%", left, 100.0),
            _fact("    max", e.itl_max_ms, "ms", right),
        ],
        [
            _fact("J/token", e.joule_per_token, "J", left),
            _fact("tracing", cost(e.slowdown), "%", right, 100.0),
        ],
    ]
    gap = " " * (inner - sum(widths))
    return [(*a, Span(gap), *b) for a, b in rows]


def _wide(lane: Lane, inner: int, glyphs: Glyphs) -> list[Row]:
    engine = lane.engine
    digits = big(number(engine.tok_s), lane.accent if known(engine.tok_s) else "dim", glyphs)
    spread_text = interval(engine.tok_s_low, engine.tok_s_high)
    left: list[Row] = [
        *digits,
        row(Span("tok/s  ", "strong"), Span(spread_text, "dim")),
        _steps(lane),
    ]
    # Three columns with the same air between them.
    width = _LEFT + (inner - _LEFT - _GRID) // 2
    grid = _grid(lane, inner - width)
    return beside([left, grid], [width, inner - width])
