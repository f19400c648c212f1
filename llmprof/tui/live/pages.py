"""The pages below the header besides the live one: summary, text, log."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmprof.analysis.view.frames.snapshot import NOT_YET, PairView, Snapshot
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import Row, Span, clean, clean_lines, fit_text, row, rule, wrap
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import interval, known, number
from llmprof.tui.live import busy
from llmprof.tui.live.columns import name_cell, name_width, tables
from llmprof.tui.live.phase import progress_bar
from llmprof.tui.view import Lane, View

_EXCERPT = 4
"""Lines of decoded text an engine gets on the summary."""


def summary(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Failures first, then speed, verdicts, every number, warnings, text, what is missing."""
    glyphs, lanes = view.glyphs, view.lanes(snapshot)
    out = _outcome(snapshot, lanes, width, glyphs)
    out += _section("decode speed", _speeds(lanes, width, glyphs), width, glyphs)
    out += _section("comparison", _verdicts(snapshot.pairs, width), width, glyphs)
    if strips := busy.section(snapshot, view, width):
        out += [(), *strips]
    out += _section("numbers", tables(lanes, width, glyphs) if lanes else [], width, glyphs)
    warnings = [
        line
        for text in snapshot.warnings
        for line in _bullet(glyphs.outlier, "warn", clean(text), width)
    ]
    out += _section("warnings", warnings, width, glyphs)
    if any(lane.engine.text for lane in lanes):
        out += _section("decoded text", texts(lanes, width, glyphs, _EXCERPT), width, glyphs)
    out += _section("not available", _missing(snapshot, width), width, glyphs)
    if snapshot.file:
        path = [row(Span(part, "dim")) for part in wrap(clean(snapshot.file), width)]
        out += _section("run file", path, width, glyphs)
    return out[1:] if out and not out[0] else out


def _section(title: str, body: Sequence[Row], width: int, glyphs: Glyphs) -> list[Row]:
    if not body:
        return []
    return [(), rule(row(Span(title, "strong")), (), width, glyphs.track), *body]


def _bullet(mark: str, role: str, text: str, width: int, body: str = "") -> list[Row]:
    first, *rest = wrap(text, width - 2)
    return [row(Span(f"{mark} ", role), Span(first, body))] + [
        row(Span(f"  {line}", body)) for line in rest
    ]


def _outcome(snapshot: Snapshot, lanes: Sequence[Lane], width: int, glyphs: Glyphs) -> list[Row]:
    out: list[Row] = []
    if snapshot.message:
        role = "fail" if snapshot.state == "failed" else "warn"
        mark = glyphs.failed if snapshot.state == "failed" else glyphs.stopped
        if snapshot.state in ("running", "finished"):
            role, mark = "dim", glyphs.lane
        out += _bullet(mark, role, clean(snapshot.message), width, role)
    for lane in lanes:
        if lane.failed:
            text = f"{clean(lane.engine.label)} failed: {lane.reason}"
            out += _bullet(glyphs.failed, "fail", text, width, "fail")
    return out


def _speeds(lanes: Sequence[Lane], width: int, glyphs: Glyphs) -> list[Row]:
    """Every engine's tok/s as a bar from zero: the answer at a glance."""
    speeds = [_speed(lane) for lane in lanes]
    top = max(speeds, default=0.0)
    if not top > 0:
        return []
    name = name_width(lanes, width // 4)
    room = max(4, width - name - 28)
    rows = []
    for lane, speed in zip(lanes, speeds, strict=True):
        if lane.failed and not speed:
            continue
        e = lane.engine
        share = speed / top
        bar = progress_bar(share, room, glyphs, lane.accent)[:1]
        gap = " " * (room - len(bar[0].text))
        spans = [
            *name_cell(lane, glyphs, name),
            *bar,
            Span(gap),
            Span(f" {number(e.tok_s):>6}", f"{lane.accent} strong"),
            Span(" tok/s  ", "dim"),
            Span(interval(e.tok_s_low, e.tok_s_high), "dim"),
        ]
        rows.append(tuple(spans))
    return rows


def _speed(lane: Lane) -> float:
    value = lane.engine.tok_s
    return 0.0 if isinstance(value, Unavailable) or not math.isfinite(value) else value


def _verdicts(pairs: Sequence[PairView], width: int) -> list[Row]:
    out: list[Row] = []
    for pair in pairs:
        role = "good strong" if pair.difference_seen else "strong"
        out += [row(Span(line, role)) for line in wrap(clean(pair.verdict), width)]
        facts = [f"{clean(pair.b)} / {clean(pair.a)}"]
        if known(pair.ratio):
            spread = interval(pair.low, pair.high)
            facts.append(f"ratio {number(pair.ratio)}×{f' [{spread}]' if spread else ''}")
        elif isinstance(pair.ratio, Unavailable) and pair.ratio.reason not in pair.verdict:
            facts.append(f"ratio n/a: {clean(pair.ratio.reason)}")
        if pair.agreement is not None:
            facts.append(f"{pair.agreement * 100:.0f} % of tokens agree")
        if pair.common_prefix is not None:
            facts.append(f"first {pair.common_prefix} tokens equal")
        out += [row(Span(f"  {line}", "dim")) for line in wrap(" · ".join(facts), width - 2)]
    return out


def _missing(snapshot: Snapshot, width: int) -> list[Row]:
    """Every reason for an n/a once, with the numbers that it explains."""
    names = {
        "tok_s": "tok/s", "tok_s_low": "interval", "ttft_ms": "TTFT",
        "prefill_tok_s": "prefill", "itl_p50_ms": "ITL p50", "itl_p95_ms": "ITL p95",
        "itl_p99_ms": "ITL p99", "itl_max_ms": "ITL max",
        "bandwidth_gb_s": "modelled bandwidth", "roofline_share": "share of peak",
        "measured_gb_s": "measured bandwidth",
        "joule_per_token": "J/token", "slowdown": "cost of tracing",
    }  # fmt: skip
    reasons: dict[tuple[str, str], list[str]] = {}
    for engine in snapshot.engines:
        for field, name in names.items():
            value = getattr(engine, field)
            if isinstance(value, Unavailable) and value != NOT_YET and not engine.failure:
                reasons.setdefault((engine.label, value.reason), []).append(name)
    shared: dict[tuple[str, str], list[str]] = {}
    for (label, reason), fields in reasons.items():
        shared.setdefault((", ".join(fields), reason), []).append(label)
    lines = [
        f"{what} ({', '.join(labels)}): {why}" if len(snapshot.engines) > 1 else f"{what}: {why}"
        for (what, why), labels in shared.items()
    ]
    for gpu in snapshot.gpus:
        name = f"GPU {gpu.device.index}" if gpu.device else "GPU"
        if gpu.unavailable:
            lines.append(f"{name}: {gpu.unavailable}")
        lines += [f"{name} {field}: {reason}" for field, reason in gpu.missing]
    return [r for line in lines for r in _bullet("·", "dim", clean(line), width, "dim")]


def texts(lanes: Sequence[Lane], width: int, glyphs: Glyphs, limit: int | None = None) -> list[Row]:
    """Decoded text of each engine; says where it leaves the first engine's."""
    out: list[Row] = []
    first = next((lane.engine.text for lane in lanes if lane.engine.text), "")
    for lane in lanes:
        if out:
            out.append(())
        text = lane.engine.text
        same = next(
            (i for i, (a, b) in enumerate(zip(first, text, strict=False)) if a != b), len(text)
        )
        note = ""
        if text and text is not first and first:
            note = "same text" if text == first else f"differs after {same} characters"
        name = name_cell(lane, glyphs, name_width(lanes, width // 2))
        out.append((*name, Span(note, "dim" if text == first else "warn")))
        if not text:
            why = "no text: the run has not decoded any yet"
            if lane.engine.state == "finished":
                why = "no text: llmprof did not drive it, its weights are random, or no tokenizer"
            why = "failed" if lane.failed else why
            out.append(row(Span(f"  {why}", "dim")))
            continue
        lines = [x for line in clean_lines(text) for x in wrap(line, width - 4)]
        if limit is not None and len(lines) > limit:
            lines = [*lines[: limit - 1], fit_text(lines[limit - 1], width - 6) + " …"]
        out += [row(Span("  "), Span(line)) for line in lines]
    return out


def text_page(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Whole decoded text, the engine in focus first."""
    lanes = sorted(view.lanes(snapshot), key=lambda lane: not lane.focused)
    return [(), *texts(lanes, width, view.glyphs)] if lanes else [_nothing("no engine yet")]


def log_page(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Warnings, then the last lines of what happened."""
    out: list[Row] = [()]
    for text in snapshot.warnings:
        out += _bullet(view.glyphs.outlier, "warn", clean(text), width)
    out += [row(Span(part)) for line in snapshot.log for part in wrap(clean(line), width)]
    running = snapshot.state == "running"
    return out if len(out) > 1 else [_nothing("nothing logged" + " yet" * running)]


def _nothing(text: str) -> Row:
    return row(Span(text, "dim"))
