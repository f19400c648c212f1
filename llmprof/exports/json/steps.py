"""Steps in the JSON document: how they are known, of what kind each is, what it computed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llmprof.analysis.device.kernels import KernelReport, StepGpu
from llmprof.analysis.device.step_kinds import Outlier, StepGroup
from llmprof.analysis.view.traced import EngineTrace
from llmprof.plaintext import one_line
from llmprof.records.steps import (
    Composition,
)

Document = dict[str, Any]

NOT_SAID = "the range of the step does not say"
NO_RATE = "the ranges do not say how many tokens were decoded"
NO_RATE_FOUND = "steps found in the GPU's work do not say how many tokens were decoded"


def known_steps(trace: EngineTrace) -> Document:
    """Keys of ``tracing``: where the steps come from, and the totals of the whole file."""
    found, totals = trace.steps_found, trace.totals
    document: Document = {
        "steps_from": found.source,
        "steps_found": {
            "words": one_line(found.words, 1000),
            "evidence": dict(found.evidence),
            "left_out": list(found.left_out),
            "candidates": list(found.candidates),
        },
    }
    if totals is not None:
        document["file_kernels"] = totals.kernels
        document["file_kernel_ns"] = totals.kernel_ns
        document["file_span_ns"] = totals.end_ns - totals.start_ns
    return document


def step_groups(report: KernelReport, source: str) -> Document:
    """Keys of ``gpu``: steps by kind, slow steps, what is of no step."""
    return {
        "groups": [_group(group, source) for group in report.groups],
        "outliers": [_outlier(outlier) for outlier in report.outliers],
        "unattributed_kernels": report.unattributed_kernels,
        "unattributed_ns": report.unattributed_ns,
    }


def step_document(step: StepGpu) -> Document:
    """One decode step on the device."""
    document = asdict(step)
    made = step.composition
    document.pop("composition")
    document["composition"] = None if made is None else _composition(made, step.wall_ns)
    return document


def _group(group: StepGroup, source: str) -> Document:
    document = asdict(group)
    for key in ("tokens", "tok_s"):
        if document[key] is None:
            document[f"{key}_reason"] = NO_RATE_FOUND if source == "detected" else NO_RATE
    return document


def _outlier(outlier: Outlier) -> Document:
    return {**asdict(outlier), "reason": one_line(outlier.reason, 400)}


def _composition(made: Composition, wall_ns: int) -> Document:
    document = asdict(made)
    tokens = made.new_tokens
    document["tok_s"] = tokens / wall_ns * 1e9 if tokens and wall_ns > 0 else None
    for key, value in list(document.items()):
        if value is None:
            document[f"{key}_reason"] = NOT_SAID
    return document
