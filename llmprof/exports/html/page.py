"""``--to html``: one page that needs no network: timelines side by side, waterfall, tables.

``report.html`` is the page; its data are JSON in a script element of a type that is never run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.findings.ranked import find
from llmprof.analysis.view.traced import EngineTrace
from llmprof.exports.formats import Progress
from llmprof.exports.json.findings import document as findings_document
from llmprof.exports.json.report import to_document
from llmprof.exports.loaded import Loaded, load
from llmprof.records import (
    Unavailable,
)
from llmprof.records.steps import (
    StepChoice,
)

MARK = "/*DATA*/"
STEPS = 3
"""Traced steps of each engine that the page shows, around the one with the median length."""
MAX_ITEMS = 20_000
"""Of one engine: some MB of text."""


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """The page."""
    runs = [_run(run) for run in load(files, progress, steps)]
    text = json.dumps(runs, separators=(",", ":"), allow_nan=False)
    # Nothing in the data can end the element: "<" is written as an escape.
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    out.write_text(page.replace(MARK, safe, 1), encoding="utf-8")


def _run(run: Loaded) -> dict[str, Any]:
    traces = () if isinstance(run.trace, Unavailable) else run.trace.engines
    document = to_document(run.report, run.data, run.trace)
    for engine in document["engines"]:
        engine.pop("tokens", None)
    return {
        "name": run.name,
        "document": document,
        "workload_text": run.report.workload,
        "findings": None
        if isinstance(run.trace, Unavailable)
        else findings_document(run.name, find(run.trace)),
        "timelines": [made for made in map(_timeline, traces) if made],
    }


def _timeline(trace: EngineTrace) -> dict[str, Any] | None:
    """Work of some steps: rows ``[start, length, name, category, stream]``, ns from the first.

    A stream is a number, or ``GPU n: number`` where the engine ran on several GPUs.
    """
    if isinstance(trace.round, Unavailable) or isinstance(trace.round.timeline, Unavailable):
        return None
    work, bounds = trace.round.work, trace.round.timeline.bounds_ns
    several = len(trace.round.devices) > 1
    first, last = _chosen(bounds)
    inside = np.flatnonzero((work.step >= first) & (work.step <= last))
    inside = inside[np.argsort(work.start_ns[inside], kind="stable")][:MAX_ITEMS]
    streams = np.concatenate(
        [trace.kernel_rows.stream[work.kernel_row], trace.copy_rows.stream[work.copy_row]]
    )
    origin = int(bounds[first - 1])
    names: dict[str, int] = {}
    kinds: dict[str, int] = {}
    rows = []
    for i in inside.tolist():
        label = int(work.label[i])
        name = names.setdefault(short_name(work.names[label]), len(names))
        kind = kinds.setdefault(trace.round.categories.get(label, "other"), len(kinds))
        start = int(work.start_ns[i])
        stream: int | str = int(streams[i])
        if several:
            stream = f"GPU {int(work.device[i])}: {stream}"
        rows.append([start - origin, int(work.end_ns[i]) - start, name, kind, stream])
    return {
        "label": trace.label,
        "first_step": first,
        "bounds": [int(b) - origin for b in bounds[first - 1 : last + 1]],
        "names": list(names),
        "categories": list(kinds),
        "rows": rows,
    }


def _chosen(bounds: Any) -> tuple[int, int]:
    """First and last of the steps around one of median length."""
    lengths = np.diff(bounds)
    middle = int(np.argsort(lengths, kind="stable")[len(lengths) // 2]) + 1
    first = max(1, min(middle - STEPS // 2, len(lengths) - STEPS + 1))
    return first, min(len(lengths), first + STEPS - 1)
