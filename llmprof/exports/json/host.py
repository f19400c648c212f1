"""The host side of a traced pass in the JSON document, and as lines of the text report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llmprof.analysis.host.causes import GapCauses
from llmprof.analysis.host.stacks import FrameTime, HostReport, HostTrace
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.exports.json.trace import null
from llmprof.plaintext import one_line, shortened
from llmprof.records import Unavailable

Document = dict[str, Any]

FRAME_LIMIT = 40
TOP = 5
LABEL = 24


def host_document(trace: EngineTrace | Unavailable) -> Document:
    """Keys ``host`` and ``gap_causes`` of an engine's ``tracing``."""
    if isinstance(trace, Unavailable):
        return {**null("host", trace), **null("gap_causes", trace)}
    host, causes = trace.host, trace.causes
    document: Document = {}
    document |= null("host", host) if isinstance(host, Unavailable) else {"host": _host(host)}
    if isinstance(causes, Unavailable):
        return document | null("gap_causes", causes)
    return {**document, "gap_causes": _gap_causes(causes)}


def _host(host: HostTrace) -> Document:
    sampled, report = host.sampled, host.report
    return {
        "sampler": {
            "rate_hz": sampled.rate_hz,
            "native": sampled.native,
            "blocking": sampled.blocking,
            "samples": sampled.samples,
            "undated": sampled.undated,
            "errors": sampled.errors,
            "error_ns": sampled.error_ns,
            "tick_ns": sampled.tick_ns,
        },
        "samples": report.samples,
        "step_ms": report.step_ms,
        "verdict": report.verdict,
        "kinds": [
            {"kind": kind, "ms_per_step": ms} for kind, ms in report.kinds_ms_per_step.items()
        ],
        "frames": [_frame(f) for f in report.frames[:FRAME_LIMIT]],
        "threads": [asdict(t) for t in report.threads],
    }


def _frame(f: FrameTime) -> Document:
    return {
        "frame": f.label,
        "origin": f.origin,
        "self_share": f.self_share,
        "inclusive_share": f.inclusive_share,
        "self_ms_per_step": f.self_ms_per_step,
        "inclusive_ms_per_step": f.inclusive_ms_per_step,
        "lines": [{"line": one_line(text, 200), "share": share} for text, share in f.lines],
    }


def _gap_causes(causes: GapCauses) -> Document:
    return {
        "total_ns": causes.total_ns,
        "ms_per_step": causes.ms_per_step,
        "basis": causes.basis,
        "samples": causes.samples,
        "verdict": causes.verdict,
        "causes": [asdict(c) for c in causes.causes],
        "frames": [_frame(f) for f in causes.frames[:FRAME_LIMIT]],
    }


def host_sections(trace: RunTrace | Unavailable, width: int) -> dict[str, list[str]]:
    """Title → lines of the text report; empty where nothing was sampled."""
    if isinstance(trace, Unavailable):
        return {}
    found = {"Why the GPU waited (traced decode steps)": _waits(trace, width)}
    for engine in trace.engines:
        if not isinstance(engine.host, Unavailable):
            title = f"Host of {shortened(engine.label, LABEL)}, by stack samples"
            found[title] = _frames(engine.host, engine.host.report, width)
    return {title: lines for title, lines in found.items() if lines}


def _waits(trace: RunTrace, width: int) -> list[str]:
    from textwrap import wrap

    lines = []
    for engine in trace.engines:
        causes = engine.causes
        if isinstance(causes, Unavailable):
            continue
        text = f"{shortened(engine.label, LABEL)}: {causes.verdict}"
        lines += wrap(text, width - 2, initial_indent="  ", subsequent_indent="    ")
        sampled = f"; {causes.samples} samples in gaps"
        lines += wrap(
            f"from {causes.basis}{'' if isinstance(engine.host, Unavailable) else sampled}",
            width - 4,
            initial_indent="    ",
            subsequent_indent="    ",
        )
    return lines


def _frames(host: HostTrace, report: HostReport, width: int) -> list[str]:
    from textwrap import wrap

    room = max(24, min(64, width - 24))
    lines = wrap(report.verdict, width - 2, initial_indent="  ", subsequent_indent="  ")
    lines.append(f"  {'':<{room}} {'self':>7} {'with callees':>13}")
    lines += [
        f"  {one_line(f.label, room):<{room}} {f.self_share:7.1%} {f.inclusive_share:13.1%}"
        for f in report.frames[:TOP]
    ]
    sampled = host.sampled
    how = "native" if sampled.native else "blocking" if sampled.blocking else "nonblocking"
    lines.append(
        f"  {report.samples} samples, {how}, {sampled.rate_hz} Hz requested; "
        f"times within {sampled.error_ns / 1e6:.2f} ms"
    )
    return lines
