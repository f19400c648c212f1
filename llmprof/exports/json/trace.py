"""The traced pass in the JSON document: kernels, categories, gaps, operators, waterfalls."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram
from llmprof.analysis.bandwidth.sampled import SampledSteps
from llmprof.analysis.device.gaps import GapReport
from llmprof.analysis.device.kernels import DeviceReport, KernelReport
from llmprof.analysis.device.pairing import Pairing
from llmprof.analysis.device.waterfall import Waterfall, verdict_words
from llmprof.analysis.view.falls import Fall
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.exports.json.roles import roles_document
from llmprof.exports.json.steps import known_steps, step_document, step_groups
from llmprof.plaintext import one_line
from llmprof.records import Maybe, Unavailable

KERNEL_LIMIT = 200
"""Kernels listed, by total time; ``kernel_names`` says how many there were."""
OPERATOR_LIMIT = 100

Document = dict[str, Any]


def engine_trace(trace: EngineTrace | Unavailable) -> Document:
    """Keys that ``tracing`` of an engine gains."""
    if isinstance(trace, Unavailable):
        keys = ("gpu", "operators", "dram_per_step", "dram_per_kernel")
        return {k: v for key in keys for k, v in null(key, trace).items()}
    document: Document = {**known_steps(trace), **_sampled(trace.sampled), **_dram(trace.dram)}
    report, gaps = trace.kernels, trace.gaps
    if isinstance(report, Unavailable):
        document |= null("gpu", report)
    else:
        document["gpu"] = {
            "attribution": report.method,
            "attribution_reason": report.reason,
            "checks": [asdict(check) for check in report.checks],
            "scope": report.scope,
            **_number("wall_ms_per_step", report.wall_ms_per_step),
            **_number("busy_ms_per_step", report.busy_ms_per_step),
            **_number("idle_ms_per_step", report.idle_ms_per_step),
            **_number("kernels_per_step", report.kernels_per_step),
            **_number("launches_per_step", report.launches_per_step),
            **_number("busy_ns", report.busy_ns),
            **_number("idle_ns", report.idle_ns),
            "idle_at_most": report.idle_at_most or None,
            "device": report.device,
            "devices": [_device(device) for device in report.devices],
            **_steps(report),
            **step_groups(report, trace.steps_found.source),
            # What nsys' own kernel summary adds up: the whole round, prefill included.
            "round_kernels": len(trace.kernel_rows),
            "round_kernel_ns": int((trace.kernel_rows.end_ns - trace.kernel_rows.start_ns).sum()),
            "kernel_names": len(report.kernels),
            "kernels": [_kernel(k) for k in report.kernels[:KERNEL_LIMIT]],
            "categories": [
                {
                    "category": c.category,
                    "total_ns": c.total_ns,
                    **_number("ms_per_step", c.ms_per_step),
                    "share": c.share,
                }
                for c in report.categories
            ],
            **roles_document(trace.roles, trace.role_rows),
            **_gaps(gaps),
        }
    if trace.operators:
        document["operators"] = [
            {"name": one_line(o.name), "calls": o.calls, "self_ns": o.total_ns}
            for o in trace.operators[:OPERATOR_LIMIT]
        ]
    else:
        document |= null("operators", Unavailable("no operators were recorded"))
    return document


def _sampled(sampled: SampledSteps | Unavailable) -> Document:
    if isinstance(sampled, Unavailable):
        return null("dram_per_step", sampled)
    document = {**asdict(sampled)}
    for key in ("mean_measured_gb_s", "mean_modelled_gb_s"):
        document.pop(key)
    document |= _number("mean_measured_gb_s", sampled.mean_measured_gb_s)
    document |= _number("mean_modelled_gb_s", sampled.mean_modelled_gb_s)
    return {"dram_per_step": document}


def _dram(found: KernelBandwidth | Unavailable) -> Document:
    if isinstance(found, Unavailable):
        return null("dram_per_kernel", found)
    document: Document = {}
    for field in fields(found):
        value = getattr(found, field.name)
        document |= (
            null(field.name, value) if isinstance(value, Unavailable) else {field.name: value}
        )
    document["counters"] = [
        {"name": name, "counted": not why, **({"reason": why} if why else {})}
        for name, why in found.counters.items()
    ]
    document["kernels"] = [_kernel_dram(k) for k in found.kernels[:KERNEL_LIMIT]]
    if not isinstance(found.headroom, Unavailable):
        document["headroom"] = {**asdict(found.headroom), "words": found.headroom.words}
    return {"dram_per_kernel": document}


def _kernel_dram(kernel: KernelDram) -> Document:
    document: Document = {}
    for field in fields(kernel):
        value = getattr(kernel, field.name)
        if isinstance(value, Unavailable):
            document |= null(field.name, value)
        else:
            document[field.name] = list(value) if isinstance(value, tuple) else value
    return document


def waterfalls(trace: RunTrace | Unavailable) -> list[Document]:
    """From the first engine to each other one."""
    return [] if isinstance(trace, Unavailable) else [fall_document(f) for f in trace.falls]


def fall_document(fall: Fall) -> Document:
    """Both waterfalls of a pair; null and the reason where a side has no kernels."""
    return {
        "a": fall.a,
        "b": fall.b,
        **_fall("traced", fall.traced),
        **_fall("timing", fall.timing),
    }


def pairing_document(found: Pairing | Unavailable) -> Document:
    """Kernels of A and B side by side; null and the reason where a side has none."""
    if isinstance(found, Unavailable):
        return null("rows", found)
    return {
        "per_step": found.per_step,
        "per_step_reason": found.why_not or None,
        "a_ns": found.a_ns,
        "b_ns": found.b_ns,
        "a_elsewhere_ns": found.a_elsewhere_ns,
        "b_elsewhere_ns": found.b_elsewhere_ns,
        "paired_share": found.paired_share,
        "rows": [asdict(row) for row in found.rows],
    }


def _fall(key: str, fall: Waterfall | Unavailable) -> Document:
    if isinstance(fall, Unavailable):
        return null(key, fall)
    return {
        key: {
            "provenance": fall.provenance,
            "note": fall.note,
            "words": verdict_words(fall),
            "a_ns": fall.a_ns,
            "b_ns": fall.b_ns,
            "delta_ns": fall.delta_ns,
            "parts": [asdict(part) for part in fall.parts],
        }
    }


def _steps(report: KernelReport) -> Document:
    if isinstance(report.steps, Unavailable):
        return null("steps", report.steps)
    return {"steps": [step_document(step) for step in report.steps]}


def _device(device: DeviceReport) -> Document:
    return {
        "device": device.device,
        "primary": device.primary,
        **_number("busy_ns", device.busy_ns),
        **_number("idle_ns", device.idle_ns),
        **_number("other_processes_ns", device.other_processes_ns),
        **_number("busy_ms_per_step", device.busy_ms_per_step),
        **_number("idle_ms_per_step", device.idle_ms_per_step),
        "kernels": device.kernels,
        "copies": device.copies,
        **(
            null("step_busy_ns", device.step_busy_ns)
            if isinstance(device.step_busy_ns, Unavailable)
            else {"step_busy_ns": list(device.step_busy_ns)}
        ),
    }


def _kernel(kernel: Any) -> Document:
    document = asdict(kernel)
    document.pop("count_per_step")  # asdict has made a dictionary of an Unavailable
    return {**document, **_number("count_per_step", kernel.count_per_step)}


def _gaps(gaps: GapReport | Unavailable) -> Document:
    if isinstance(gaps, Unavailable):
        return null("gaps", gaps)
    return {
        "gaps": {
            "total_ns": gaps.total_ns,
            "ms_per_step": gaps.ms_per_step,
            "kind_ms_per_step": dict(gaps.kind_ms_per_step),
            "place_count": gaps.place_count,
            "places": [asdict(place) for place in gaps.places],
            "longest": [{**asdict(gap), "duration_ns": gap.duration_ns} for gap in gaps.longest],
        }
    }


def _number(key: str, value: Maybe) -> Document:
    return null(key, value) if isinstance(value, Unavailable) else {key: value}


def null(key: str, why: Unavailable) -> Document:
    """What could not be had: null, and the reason beside it."""
    return {key: None, f"{key}_reason": why.reason}
