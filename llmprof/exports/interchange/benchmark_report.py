"""``--to benchmark-report``: llm-d's Benchmark Report v0.2.1, a report an engine.

The schema is that of the package ``llmd-benchmark-report``. A round is a request: its TTFT, time
per output token, gaps between tokens and latency are the distributions of the report. Everything
that has no place in it (ratios, kernels, idle time) is llmprof's own document under
``results.profiling``. JSON is YAML too, which is what its readers take.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmprof.analysis.timing.conditions import gpu_indices
from llmprof.analysis.timing.stats import distribution
from llmprof.analysis.timing.steps import RoundSteps
from llmprof.analysis.view.report import EngineReport
from llmprof.errors import UsageError
from llmprof.exports.formats import Progress
from llmprof.exports.json.report import to_document
from llmprof.exports.loaded import Loaded, load
from llmprof.records import EngineInfo, RunData
from llmprof.records.steps import StepChoice

VERSION = "0.2.1"
NOTHING = (
    "no engine has a complete timing round, so there is nothing to report (a recorded program has"
    " some where it was recorded with --twice)"
)

Document = dict[str, Any]


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """A folder with a report an engine: ``LABEL.json``.

    Raises:
        UsageError: no engine has a complete timing round.
    """
    made = [
        (run, engine, report)
        for run in load(files, progress, steps)
        for engine in run.report.engines
        if (report := _report(run, engine)) is not None
    ]
    if not made:
        raise UsageError(NOTHING)
    out.mkdir()
    taken: set[str] = set()
    for _, engine, report in made:
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in engine.label)[:80] or "run"
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique)
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (out / f"{unique}.json").write_text(text, encoding="utf-8")


def _report(run: Loaded, engine: EngineReport) -> Document | None:
    done = [r for r in engine.steps.rounds if r.complete and r.decode_ns and r.steps and r.ttft_ns]
    if not done or engine.info is None:
        return None
    data = run.data
    start = datetime.fromtimestamp((data.info.t0_utc_ns + done[0].start_ns) / 1e9, timezone.utc)
    ended_ns = done[-1].start_ns + (done[-1].ttft_ns or 0) + (done[-1].decode_ns or 0)
    end = datetime.fromtimestamp((data.info.t0_utc_ns + ended_ns) / 1e9, timezone.utc)
    experiment = _digest([data.info.t0_utc_ns, list(data.info.command)])
    return {
        "version": VERSION,
        "run": {
            "uid": _digest([experiment, engine.engine_id, engine.label]),
            "eid": experiment,
            "time": {
                "start": start.isoformat(),
                "end": end.isoformat(),
                "duration": f"PT{(end - start).total_seconds()}S",
            },
            "description": f"llmprof: {run.report.workload}",
        },
        "scenario": {
            "stack": [_component(data, engine, engine.info)],
            "load": _load(data, len(done[0].step_ns) or done[0].steps),
        },
        "results": {
            "request_performance": {"aggregate": _aggregate(data, engine, done)},
            "profiling": {"llmprof": to_document(run.report, data, run.trace)},
        },
    }


def _component(data: RunData, engine: EngineReport, info: EngineInfo) -> Document:
    record = next(e for e in data.engines if e.engine_id == engine.engine_id)
    indices = gpu_indices(record)
    names = [d.name for d in data.gpu_devices if d.index in indices]
    cpu = data.info.environment.get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else cpu
    count = max(1, len(indices)) if indices else 0
    return {
        "metadata": {
            "label": engine.label,
            "cfg_id": _digest([record.options, info.versions, info.model]),
        },
        "standardized": {
            "kind": "inference_engine",
            "tool": engine.name,
            "tool_version": ", ".join(f"{k} {v}" for k, v in info.versions.items()) or "not known",
            "role": "replica",
            "replicas": 1,
            "model": {"name": Path(info.model).name or "not known"},
            "accelerator": {
                "model": names[0] if names else str(model or "CPU"),
                "count": count,
                "parallelism": {"tp": count},
            },
        },
        "native": {"args": dict(record.options), "config": {"dtype": info.dtype}},
    }


def _load(data: RunData, steps: int) -> Document:
    workload = data.info.workload
    batch = int(workload.get("batch") or 1)
    given = workload.get("prompt_text") is not None
    return {
        "metadata": {"cfg_id": str(workload.get("workload_sha256", ""))},
        "standardized": {
            "tool": "llmprof",
            "tool_version": data.info.tool_version,
            "source": "sampled" if given else "random",
            "input_seq_len": {"distribution": "fixed", "value": int(workload["prompt_len"])},
            "output_seq_len": {"distribution": "fixed", "value": steps + 1},
            "concurrency": batch,
        },
        "native": {"args": {"command": list(data.info.command)}},
    }


def _aggregate(data: RunData, engine: EngineReport, done: Sequence[RoundSteps]) -> Document:
    workload = data.info.workload
    batch, prompt = int(workload.get("batch") or 1), int(workload["prompt_len"])
    whole = [((r.ttft_ns or 0) + (r.decode_ns or 0)) / 1e9 for r in done]
    output = [r.steps + 1 for r in done]
    latency: Document = {
        "time_to_first_token": _stats([(r.ttft_ns or 0) / 1e9 for r in done], "s"),
        "time_per_output_token": _stats(
            [(r.decode_ns or 0) / r.steps / 1e9 for r in done], "s/token"
        ),
        "normalized_time_per_output_token": _stats(
            [s / n for s, n in zip(whole, output, strict=True)], "s/token"
        ),
        "request_latency": _stats(whole, "s"),
    }
    gaps = [ns / 1e9 for r in done for ns in r.step_ns]
    if gaps:
        latency["inter_token_latency"] = _stats(gaps, "s/token")
    incomplete = sum(not r.complete for r in engine.steps.rounds)
    both = list(zip(output, whole, strict=True))
    return {
        "requests": {
            "total": len(engine.steps.rounds) * batch,
            "failures": 0,
            "incomplete": incomplete * batch,
            "input_length": _stats([float(prompt)] * len(done), "count"),
            "output_length": _stats([float(n) for n in output], "count"),
        },
        "latency": latency,
        "throughput": {
            "input_token_rate": _stats([prompt * batch / s for s in whole], "tokens/s"),
            "output_token_rate": _stats([n * batch / s for n, s in both], "tokens/s"),
            "total_token_rate": _stats([(prompt + n) * batch / s for n, s in both], "tokens/s"),
            "request_rate": _stats([batch / s for s in whole], "queries/s"),
        },
    }


def _stats(values: Sequence[float], units: str) -> Document:
    found = distribution(values)
    return {
        "units": units,
        "mean": found.mean,
        "stddev": found.std,
        "min": found.min,
        "p50": found.p50,
        "p90": found.p90,
        "p95": found.p95,
        "p99": found.p99,
        "max": found.max,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
