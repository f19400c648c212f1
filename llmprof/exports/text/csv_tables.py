"""``--to csv``: a folder of tables. Empty cells are values that are not available."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.traced import EngineTrace
from llmprof.exports.formats import Progress
from llmprof.exports.loaded import Loaded, load
from llmprof.plaintext import one_line
from llmprof.records import (
    Unavailable,
)
from llmprof.records.steps import (
    StepChoice,
)

_DEVICE = (
    "device", "primary", "busy_ns", "idle_ns", "other_processes_ns", "busy_ms_per_step",
    "idle_ms_per_step", "kernels", "copies",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@")


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """``engines steps step_kinds kernels kernel_dram categories gaps devices waterfalls ranks
    collectives rank_steps gpu_samples unavailable`` .csv.

    All begin with the file's name, so that several runs go into one table.
    """
    runs = load(files, progress, steps)
    out.mkdir()
    tables = {
        "engines": _engines,
        "steps": _steps,
        "step_kinds": _step_kinds,
        "kernels": _kernels,
        "kernel_dram": _kernel_dram,
        "categories": _categories,
        "gaps": _gaps,
        "devices": _devices,
        "waterfalls": _waterfalls,
        "ranks": _ranks,
        "collectives": _collectives,
        "rank_steps": _rank_steps,
        "gpu_samples": _gpu_samples,
        "unavailable": _unavailable,
    }
    for name, make in tables.items():
        rows = [{"file": run.name, **row} for run in runs for row in make(run)]
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["file"]
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, Unavailable):
        return ""
    if isinstance(value, str):
        text = one_line(value, 1000)
        # A spreadsheet would run a text that begins so.
        return f"'{text}" if text.startswith(_FORMULA) else text
    return value


def _traced(trace: EngineTrace | None) -> dict[str, Any]:
    """Means over the traced steps that count."""
    report = trace.kernels if trace is not None else None
    if not isinstance(report, KernelReport):
        return {}
    return {
        "traced_step_ms": report.wall_ms_per_step,
        "traced_busy_ms": report.busy_ms_per_step,
        "traced_idle_ms": report.idle_ms_per_step,
        "traced_kernels_per_step": report.kernels_per_step,
        "traced_launches_per_step": report.launches_per_step,
    }


def _engines(run: Loaded) -> Iterable[dict[str, Any]]:
    traces = {trace.label: trace for trace in _traces(run)}
    for engine in run.report.engines:
        steps, roof = engine.steps, engine.bandwidth
        itl = steps.itl_ms
        shares = {} if isinstance(itl, Unavailable) else asdict(itl)
        yield {
            "engine": engine.label,
            "state": engine.state,
            "rounds": len(steps.rounds),
            "tok_s": steps.tok_s.value,
            "tok_s_low": steps.tok_s.low,
            "tok_s_high": steps.tok_s.high,
            "ttft_ms": steps.ttft_ms.value,
            "prefill_tok_s": steps.prefill_tok_s.value,
            **{f"itl_{k}_ms": v for k, v in shares.items() if isinstance(v, float)},
            "modelled_gb_s": roof.modelled_gb_s,
            "measured_gb_s": roof.measured_gb_s,
            "j_per_token": steps.joule_per_token,
            "slowdown": steps.slowdown.ratio,
            **_traced(traces.get(engine.label)),
        }


def _steps(run: Loaded) -> Iterable[dict[str, Any]]:
    labels = {e.engine_id: e.label for e in run.data.engines}
    for record in run.data.rounds:
        for step, (start, end) in enumerate(pairwise(record.stamps_ns), 1):
            yield {
                "engine": labels[record.engine_id],
                "pass": record.pass_name,
                "round": record.index,
                "step": step,
                "phase": record.labels[step - 1].phase if record.labels else "decode",
                "start_ns": start,
                "duration_ns": end - start,
            }


def _step_kinds(run: Loaded) -> Iterable[dict[str, Any]]:
    """Of the traced steps that the report is about; medians. ``counted``: in its means."""
    for trace in _traces(run):
        if not isinstance(trace.kernels, Unavailable):
            for group in trace.kernels.groups:
                yield {"engine": trace.label, **asdict(group)}


def _traces(run: Loaded) -> Iterable[Any]:
    return () if isinstance(run.trace, Unavailable) else run.trace.engines


def _kernels(run: Loaded) -> Iterable[dict[str, Any]]:
    for trace in _traces(run):
        if not isinstance(trace.kernels, Unavailable):
            for kernel in trace.kernels.kernels:
                row = asdict(kernel)
                for key in ("grid", "block"):
                    row[key] = "x".join(map(str, row[key])) if row[key] else None
                row["count_per_step"] = kernel.count_per_step
                yield {"engine": trace.label, **row}


def _kernel_dram(run: Loaded) -> Iterable[dict[str, Any]]:
    """GB is 1e9 bytes; ``profile_gb_s`` has the parts from start to end, apart by spaces."""
    for trace in _traces(run):
        if isinstance(trace.dram, Unavailable):
            continue
        for kernel in trace.dram.kernels:
            row = {f.name: getattr(kernel, f.name) for f in fields(kernel)}
            for key in ("grid", "block"):
                row[key] = "x".join(map(str, row[key])) if row[key] else None
            row["others"] = ", ".join(kernel.others)
            row["profile_gb_s"] = " ".join(f"{v:.1f}" for v in kernel.profile_gb_s)
            row |= row.pop("further_pct")
            yield {"engine": trace.label, **row}


def _categories(run: Loaded) -> Iterable[dict[str, Any]]:
    for trace in _traces(run):
        if not isinstance(trace.kernels, Unavailable):
            for item in trace.kernels.categories:
                row = {**asdict(item), "ms_per_step": item.ms_per_step}
                yield {"engine": trace.label, **row}


def _gaps(run: Loaded) -> Iterable[dict[str, Any]]:
    for trace in _traces(run):
        if not isinstance(trace.gaps, Unavailable):
            for place in trace.gaps.places:
                yield {"engine": trace.label, **asdict(place)}


def _devices(run: Loaded) -> Iterable[dict[str, Any]]:
    for trace in _traces(run):
        if not isinstance(trace.kernels, Unavailable):
            for device in trace.kernels.devices:
                row = {key: getattr(device, key) for key in _DEVICE}
                yield {"engine": trace.label, **row}


def _groups(run: Loaded) -> Iterable[RanksReport]:
    return () if isinstance(run.trace, Unavailable) else run.trace.ranks


def _ranks(run: Loaded) -> Iterable[dict[str, Any]]:
    for group in _groups(run):
        for line in group.ranks:
            row = group.fields(line)
            yield {"engine": group.title, "provenance": group.provenance, **row}


def _collectives(run: Loaded) -> Iterable[dict[str, Any]]:
    for group in _groups(run):
        for line in group.collectives:
            yield {"engine": group.title, **vars(line)}


def _rank_steps(run: Loaded) -> Iterable[dict[str, Any]]:
    """How long the others waited for each rank in each step."""
    for group in _groups(run):
        for line, late in zip(group.ranks, group.late_ns.tolist(), strict=True):
            for step, (ns, critical) in enumerate(zip(late, group.critical, strict=True), 1):
                yield {
                    "engine": group.title,
                    "rank": line.rank,
                    "step": step,
                    "late_ns": ns,
                    "critical": critical == line.rank,
                }


def _waterfalls(run: Loaded) -> Iterable[dict[str, Any]]:
    if isinstance(run.trace, Unavailable):
        return
    for fall in run.trace.falls:
        for chosen in (fall.traced, fall.timing):
            if not isinstance(chosen, Unavailable):
                for part in chosen.parts:
                    yield {"a": fall.a, "b": fall.b, "basis": chosen.basis, **asdict(part)}


def _gpu_samples(run: Loaded) -> Iterable[dict[str, Any]]:
    return (asdict(sample) for sample in run.data.gpu_samples)


def _unavailable(run: Loaded) -> Iterable[dict[str, Any]]:
    return (asdict(item) for item in run.report.missing)
