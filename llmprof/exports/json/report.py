"""The JSON document of ``llmprof --headless --json``. ``schema.json`` describes every key.

One convention for what is missing: the key is ``null`` and its sibling ``<key>_reason`` says why;
the sibling exists only then.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from llmprof.analysis.timing.agreement import TokenAgreement
from llmprof.analysis.timing.conditions import Conditions
from llmprof.analysis.timing.cpu import CpuConditions
from llmprof.analysis.timing.stats import CONFIDENCE, Distribution, Estimate
from llmprof.analysis.timing.steps import RoundSteps
from llmprof.analysis.view.report import EngineReport, Report
from llmprof.analysis.view.traced import EngineTrace, RunTrace, all_warnings
from llmprof.exports.json.comparison import SCHEMA_VERSION, finite, pair_document
from llmprof.exports.json.host import host_document
from llmprof.exports.json.ranks import ranks_document
from llmprof.exports.json.trace import engine_trace, null, waterfalls
from llmprof.records import GpuDevice, RunData, RunInfo, Unavailable

Document = dict[str, Any]

NOT_DRIVEN = "llmprof did not drive this program"

_NUMBERS = re.compile(r"\[\n\s+(-?\d[-+.,\d\seE]*?)\n\s+\]")


def to_document(report: Report, data: RunData, trace: RunTrace | Unavailable) -> Document:
    """The document as plain Python values, without NaN or infinity."""
    info = data.info
    traces: dict[str, EngineTrace | Unavailable] = {
        engine.label: data.no_traced_pass(engine.label) for engine in report.engines
    }
    if isinstance(trace, Unavailable):
        traces = dict.fromkeys(traces, trace)
    else:
        traces |= {engine.label: engine for engine in trace.engines}
    document: Document = {
        "schema_version": SCHEMA_VERSION,
        "tool": {
            "name": info.tool,
            "version": info.tool_version,
            **_maybe("commit", info.tool_commit, _no_commit(info)),
        },
        "run": {
            "state": info.state,
            "message": info.message,
            "schedule": info.schedule,
            "source": info.source,
            "trace_level": info.trace_level,
            "t0_utc": _iso(info.t0_utc_ns),
            "command": list(info.command),
            **_maybe("file", data.shown_path or None, "the run was not saved"),
        },
        "environment": info.environment,
        "workload": _workload(info),
        "gpus": [_gpu(device) for device in data.gpu_devices],
        "engines": [_engine(engine, data, traces[engine.label]) for engine in report.engines],
        "pairs": [pair_document(pair) for pair in report.pairs],
        "waterfalls": waterfalls(trace),
        **ranks_document(trace),
        "agreement": [_agreement(item) for item in report.agreement],
        "warnings": [asdict(item) for item in all_warnings(report, trace)],
        "unavailable": [asdict(item) for item in report.missing],
    }
    clean: Document = finite(document)
    return clean


def to_text(document: Document) -> str:
    """Indented, each list of numbers on one line, ASCII (nothing in it moves a terminal)."""
    text = json.dumps(document, indent=2, allow_nan=False)
    # Line breaks inside strings are escaped, so only real lists of numbers match.
    return _NUMBERS.sub(lambda m: "[" + re.sub(r",\n\s+", ", ", m[1]) + "]", text) + "\n"


def _maybe(key: str, value: Any, reason: str = "") -> Document:
    """``{key: value}``, or null and the reason for ``None`` and ``Unavailable``."""
    if isinstance(value, Unavailable):
        return null(key, value)
    if value is None:
        return {key: None, f"{key}_reason": reason}
    return {key: value}


def _no_commit(info: RunInfo) -> str:
    return f"made by {info.tool}" if info.opened else "not run from a git checkout"


def _iso(utc_ns: int) -> str:
    moment = datetime.fromtimestamp(utc_ns // 1000 / 1e6, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _workload(info: RunInfo) -> Document:
    rest = {key: value for key, value in info.workload.items() if key != "prompt_text"}
    reason = "given as token ids" if info.source == "driven" else NOT_DRIVEN
    return {**rest, **_maybe("prompt_text", info.workload.get("prompt_text"), reason)}


def _gpu(device: GpuDevice) -> Document:
    capability = device.compute_capability
    fields = {
        **asdict(device),
        "compute_capability": ".".join(map(str, capability)) if capability else None,
        "peak_bandwidth_gb_s": device.peak_bandwidth_gb_s,
    }
    document: Document = {}
    for key, value in fields.items():
        document |= _maybe(key, value, "NVML did not say")
    return document


def _engine(engine: EngineReport, data: RunData, trace: EngineTrace | Unavailable) -> Document:
    record = next(e for e in data.engines if e.engine_id == engine.engine_id)
    driven = data.info.source == "driven"
    not_loaded = f"{engine.label} did not load" if driven else NOT_DRIVEN
    not_warm = "warm-up did not end" if driven else NOT_DRIVEN
    steps, roof = engine.steps, engine.bandwidth
    document: Document = {
        "label": engine.label,
        "name": engine.name,
        "python": record.python,
        "options": record.options,
        "state": engine.state,
        "failure": asdict(engine.failure) if engine.failure else None,
        **_maybe("info", asdict(engine.info) if engine.info else None, not_loaded),
        **_maybe("load_s", engine.load_s, record.load_note or not_loaded),
        "load": {"shared": record.load_shared, "note": record.load_note},
        "warmup": {
            **_maybe("steps", engine.warmup_steps, not_warm),
            **_maybe("stable", engine.warmup_stable, not_warm),
        },
        **_estimate("tok_s", steps.tok_s),
        **_estimate("tok_s_per_sequence", steps.tok_s_per_sequence),
        **_estimate("ttft_ms", steps.ttft_ms),
        **_estimate("prefill_tok_s", steps.prefill_tok_s),
        **_estimate("tpot_ms", steps.tpot_ms),
        **_maybe("itl_ms", _itl(steps.itl_ms, steps.rounds)),
        "rounds": [_round(item) for item in steps.rounds],
        "bandwidth": {
            **_maybe("bytes_per_step", roof.bytes_per_step),
            **_maybe("modelled_gb_s", roof.modelled_gb_s),
            **_maybe("modelled_share", roof.modelled_share),
            **_maybe("measured_gb_s", roof.measured_gb_s),
            **_maybe("measured_share", roof.measured_share),
            **_maybe("peak_gb_s", roof.peak_gb_s),
            "peak_source": roof.peak_source,
            **_maybe("copy_gb_s", roof.copy_gb_s),
        },
        **_maybe("j_per_token", steps.joule_per_token),
        **_maybe("j_per_total_token", steps.joule_per_total_token),
        **_maybe("mean_power_w", steps.mean_power_w),
        "tracing": {
            **_maybe("slowdown", steps.slowdown.ratio),
            "steps": steps.slowdown.traced_steps,
            **_maybe("median_step_ns", steps.slowdown.traced_step_ns),
            **engine_trace(trace),
            **host_document(trace),
        },
        **_maybe("conditions", _conditions(engine.conditions)),
        **_maybe("cpu", _cpu(engine.cpu)),
        "determinism": {
            **_maybe("repeats", engine.determinism.repeats),
            **_maybe("common_prefix", engine.determinism.common_prefix),
            "rounds": engine.determinism.rounds,
        },
        **_maybe("text", engine.text),
        **_maybe("tokens", engine.tokens),
    }
    return document


def _estimate(key: str, item: Estimate) -> Document:
    if isinstance(item.value, Unavailable):
        return _maybe(key, item.value)
    document = {
        item.statistic: item.value,
        **_maybe("low", item.low),
        **_maybe("high", item.high),
        "confidence": CONFIDENCE,
        "rounds": list(item.samples),
    }
    return {key: document}


def _itl(itl: Distribution | Unavailable, rounds: tuple[RoundSteps, ...]) -> Any:
    if isinstance(itl, Unavailable):
        return itl
    return {**asdict(itl), "samples_ms": [[ns / 1e6 for ns in r.step_ns] for r in rounds]}


def _round(item: RoundSteps) -> Document:
    return {
        "index": item.index,
        "complete": item.complete,
        "start_ns": item.start_ns,
        "steps": item.steps,
        **_maybe("ttft_ns", item.ttft_ns, "prefill did not finish"),
        **_maybe("decode_ns", item.decode_ns, "no decode step finished"),
        **_maybe("tok_s", item.tok_s),
        **_maybe("energy_j", item.energy_j),
    }


def _conditions(item: Conditions | Unavailable) -> Any:
    if isinstance(item, Unavailable):
        return item
    document: Document = {"gpu": item.device, "samples": item.samples}
    for key in ("sm_clock_mhz", "mem_clock_mhz", "temperature_c", "power_w"):
        span = getattr(item, key)
        document |= _maybe(key, asdict(span) if span else None, "NVML did not read it")
    throttle = [{"reason": name, "share": share} for name, share in item.throttle]
    document["throttle"] = throttle
    if item.further:
        document["further"] = [_conditions(other) for other in item.further]
    return document


def _cpu(item: CpuConditions | Unavailable) -> Any:
    return item if isinstance(item, Unavailable) else asdict(item)


def _agreement(item: TokenAgreement) -> Document:
    return {
        "a": item.a,
        "b": item.b,
        **_maybe("common_prefix", item.common_prefix),
        **_maybe("agreement", item.agreement),
        "length": item.length,
        "rounds": item.rounds,
    }
