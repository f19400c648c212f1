"""Pairs of engines, and the document of ``llmprof compare --json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmprof.analysis.timing.compare import Comparison
from llmprof.analysis.timing.stats import CONFIDENCE, Estimate
from llmprof.analysis.view.falls import Fall
from llmprof.exports.json.roles import role_pairs_document
from llmprof.exports.json.trace import fall_document, null, pairing_document
from llmprof.records import Maybe, Unavailable

SCHEMA_VERSION = "2.0"
"""Major: a key changed its meaning or went away. Minor: keys were added."""

Document = dict[str, Any]


def comparison_document(
    found: Sequence[tuple[Comparison, Fall]], gates: Sequence[Document] = ()
) -> Document:
    """The same ``pairs`` and ``waterfalls`` as a report's, and what became of each gate."""
    document: Document = {
        "schema_version": SCHEMA_VERSION,
        "pairs": [pair_document(pair) for pair, _ in found],
        "waterfalls": [fall_document(fall) for _, fall in found],
        "kernel_pairs": [pairing_document(fall.kernels) for _, fall in found],
        "role_pairs": [role_pairs_document(fall.roles) for _, fall in found],
        "gates": list(gates),
    }
    clean: Document = finite(document)
    return clean


def gate_document(
    text: str,
    metric: str,
    below: bool,
    limit: float,
    a: str,
    b: str,
    outcome: str,
    value: Maybe,
    low: Maybe,
    high: Maybe,
    line: str,
) -> Document:
    """``low`` and ``high`` hold the allowance for processes."""
    return {
        "gate": text,
        "metric": metric,
        "fails": "below" if below else "above",
        "limit": limit,
        "a": a,
        "b": b,
        "outcome": outcome,
        **_maybe("value", value),
        **_maybe("low", low),
        **_maybe("high", high),
        "text": line,
    }


def pair_document(pair: Comparison) -> Document:
    return {
        "a": pair.a,
        "b": pair.b,
        "paired": pair.paired,
        "rounds": pair.rounds,
        **_ratio("tok_s_ratio", pair.tok_s_ratio),
        **_ratio("ttft_ratio", pair.ttft_ratio),
        "difference_seen": pair.difference_seen,
        "smallest_difference": pair.allowance,
        "outcome": pair.outcome,
        **_maybe("same_within", pair.same_within),
        **_maybe("needed_s", pair.needed_s),
        "interval_over": pair.method,
        "processes": pair.processes,
        **_maybe("process_share", pair.process_share),
        "verdict": pair.verdict,
        "warnings": list(pair.warnings),
    }


def _ratio(key: str, item: Estimate) -> Document:
    if isinstance(item.value, Unavailable):
        return _maybe(key, item.value)
    bounds = {**_maybe("low", item.low), **_maybe("high", item.high)}
    return {key: {"value": item.value, **bounds, "confidence": CONFIDENCE}}


def _maybe(key: str, value: Maybe) -> Document:
    return null(key, value) if isinstance(value, Unavailable) else {key: value}


def finite(value: Any) -> Any:
    """Copy with lists for tuples, and null for NaN and infinity (which JSON has not)."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
