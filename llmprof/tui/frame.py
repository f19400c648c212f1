"""A snapshot and a view in, rows out: the whole screen but the footer, as pure functions."""

from __future__ import annotations

import math
from typing import Final

from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.tui.compare import page as compare_page
from llmprof.tui.drawing.cells import Row, Span, clean, fit, row, rule, spread
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import elapsed
from llmprof.tui.findings import page as findings_page
from llmprof.tui.host import page as host_page
from llmprof.tui.live import busy, cards, gpu, latency, pages, rounds
from llmprof.tui.live.phase import progress_bar
from llmprof.tui.memory import page as memory_page
from llmprof.tui.opening import Reading
from llmprof.tui.ranks import page as ranks_page
from llmprof.tui.timeline import page as timeline_page
from llmprof.tui.view import PAGE_KEYS, PAGES, View

_STATE_ROLE: Final = {
    "running": "good",
    "finished": "good",
    "interrupted": "warn",
    "failed": "fail",
}
_LOG_FROM: Final = 32
"""Body rows from which the log has a place of its own; below, it gets what is left over."""
_LOG_ROWS: Final = 5
_BAR: Final = 12
"""Width of the bar that shows how far the reading of a file is."""
_TABS_FROM: Final = 100
"""Width from which all pages stand in the header by name."""


def header(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Two rows: what runs, for how long, in which state; the workload and the pages."""
    glyphs = view.glyphs
    mark = {
        "running": glyphs.running,
        "finished": glyphs.finished,
        "interrupted": glyphs.stopped,
        "failed": glyphs.failed,
    }[snapshot.state]
    right: list[Span] = []
    if view.zoom and len(snapshot.engines) > 1:
        alone = f"1 of {len(snapshot.engines)} engines (enter: all)"
        right += [Span(f" {alone} ", "chip"), Span("  ")]
    if view.reading is not None:
        right += _reading(view.reading, view.glyphs)
    if snapshot.warnings:
        count = len(snapshot.warnings)
        noun = "warning" if count == 1 else "warnings"
        right += [Span(f"{glyphs.outlier} {count} {noun}", "warn"), Span("   ")]
    right.append(Span(elapsed(snapshot.elapsed_s).rjust(7), "dim"))
    if view.paused:
        right += [Span("  "), Span(f" {glyphs.paused} paused ", "chip")]
    else:
        right += [Span("   "), Span(f"{mark} {snapshot.state}", _STATE_ROLE[snapshot.state])]
    left = row(Span("llmprof", "bright"), Span(f"  {clean(snapshot.title)}", "strong"))
    tabs: list[Span] = []
    for name in PAGES:
        on = name == view.page
        if name not in view.pages and not on:
            continue
        if width < _TABS_FROM and not on:
            # The key in place of the name: the workload's numbers need the room.
            tabs.append(Span(f" {PAGE_KEYS[name]} ", "dim"))
            continue
        tabs.append(Span(f"[{name}]" if on else f" {name} ", "strong" if on else "dim"))
    return [
        spread(left, (Span("  "), *right), width),
        spread(row(*_what(snapshot)), (Span("  "), *tabs), width),
    ]


def _what(snapshot: Snapshot) -> list[Span]:
    """How far the run is, model, bits and GPU, then the workload: the line is cut on the right."""
    goal = [Span(clean(snapshot.goal), "strong"), Span(" · ", "dim")] if snapshot.goal else []
    if not snapshot.what:
        return [*goal, Span(clean(snapshot.workload), "dim")]
    return [*goal, Span(clean(snapshot.what)), Span(f" · {clean(snapshot.workload)}", "dim")]


def _reading(reading: Reading, glyphs: Glyphs) -> list[Span]:
    """``reading kernels ━━━━──── 43 %``: the share is of rows, so that it is true."""
    share = reading.share
    percent = "" if share is None else f"{math.floor(100 * share):3d} %"
    bar = progress_bar(share, _BAR, glyphs, "accent0")
    return [Span(f"{clean(reading.what)} ", "dim"), *bar, Span(f"{percent:>6}   ", "dim")]


def body(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    """The page on show. Only ``steps`` is made to fit ``height``; the others scroll."""
    if view.page == "findings":
        return findings_page.page(snapshot, view, width)
    if view.page == "summary":
        return pages.summary(snapshot, view, width)
    if view.page == "timeline":
        return timeline_page.page(snapshot, view, width, height)
    if view.page == "compare":
        return compare_page.page(snapshot, view, width, height)
    if view.page == "memory":
        return memory_page.page(snapshot, view, width, height)
    if view.page == "ranks":
        return ranks_page.page(snapshot, view, width)
    if view.page == "host":
        return host_page.page(snapshot, view, width)
    if view.page == "text":
        return pages.text_page(snapshot, view, width)
    if view.page == "log":
        return pages.log_page(snapshot, view, width)
    return steps(snapshot, view, width, height)


def steps(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    """Cards, timelines, GPU, log: the timelines get what the others leave."""
    glyphs, lanes = view.glyphs, view.lanes(snapshot)
    top = cards.engines(lanes, width, height, glyphs)
    left = height - len(top)
    least = 1 + len(lanes)
    focus = snapshot.engines[view.focused(snapshot)].label if snapshot.engines else ""
    panel = gpu.panel(snapshot, width, glyphs, max(1, left - least), focus)
    left -= len(panel)
    wanted = min(_LOG_ROWS, 1 + len(snapshot.log)) if height >= _LOG_FROM else 0
    strips = busy.section(snapshot, view, width)
    if left - len(strips) < least:
        strips = []
    left -= len(strips)
    room = max(least, left - wanted)
    over = snapshot.state != "running"
    lanes = rounds.chosen(lanes, view)
    asked = lanes[0].engine.round_label if lanes and view.round is not None else ""
    chart = latency.section(lanes, view.scale, width, room, glyphs, over=over, chosen=asked)
    left -= len(chart)
    log = _log(snapshot, view, width, left)
    # The log sits at the bottom, so that its growth moves nothing above it.
    air: list[Row] = [()] * max(0, left - len(log))
    return [*top, *chart, *strips, *panel, *air, *log] if lanes else [*top, *panel, *air, *log]


def _log(snapshot: Snapshot, view: View, width: int, room: int) -> list[Row]:
    lines = [clean(line) for line in snapshot.log]
    if room < 1 or not lines:
        return []
    if room == 1:
        return [fit(row(Span(lines[-1], "dim")), width)]
    shown = lines[-(room - 1) :]
    title = rule(row(Span("log", "strong")), (), width, view.glyphs.track)
    return [title, *(fit(row(Span(line, "dim")), width) for line in shown)]
