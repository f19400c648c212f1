"""``ranks`` of the JSON document: groups of processes and GPUs that compute a step together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmprof.analysis.ranks.matched.clocks import ClockFit
from llmprof.analysis.ranks.matched.twins import SkewReport
from llmprof.analysis.ranks.results import RankGpu, RanksReport
from llmprof.analysis.view.traced import RunTrace
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

Document = dict[str, Any]


def ranks_document(trace: RunTrace | Unavailable) -> Document:
    """``ranks``, and by engine why a group is missing."""
    if isinstance(trace, Unavailable):
        reason = {"ranks_reason": trace.reason, "skews_reason": trace.reason}
        return {"ranks": None, "skews": None, **reason}
    return {
        "ranks": [_group(group) for group in trace.ranks],
        "skews": [_skew(group) for group in trace.skews],
        "ranks_missing": {one_line(k): one_line(v) for k, v in trace.no_ranks.items()},
    }


def _skew(group: SkewReport) -> Document:
    return {
        "engine": one_line(group.title),
        "words": group.words,
        "kernels": group.kernels,
        "left_out": group.left_out,
        "ranks": [{**asdict(line), "pid": line.pid & 0xFFFFFF} for line in group.ranks],
        "notes": list(group.notes),
    }


def _group(group: RanksReport) -> Document:
    return {
        "engine": one_line(group.title),
        "world_size": group.world,
        "steps": group.steps,
        "step_ms": group.step_ms,
        "provenance": group.provenance,
        "verdict": group.verdict,
        "words": group.words,
        "reason": None if group.reason is None else _reason(group),
        "lateness": _lateness(group),
        "ranks": [
            _nulls({**group.fields(line), "pid": line.pid & 0xFFFFFF}) for line in group.ranks
        ],
        "collectives": [_nulls(vars(line)) for line in group.collectives],
        "critical_rank_of_step": list(group.critical),
        "late_ns_of_rank_and_step": group.late_ns.tolist(),
        "clocks": {"words": group.clock_words, "ranks": [_clock(c) for c in group.clocks]},
        "gpus": [_gpu(one) for one in group.gpus],
        "notes": list(group.notes),
    }


def _reason(group: RanksReport) -> Document:
    assert group.reason is not None
    document = {**vars(group.reason), "kernel": one_line(group.reason.kernel) or None}
    del document["before"]
    return document


def _lateness(group: RanksReport) -> Document | None:
    found = group.lateness
    if found is None:
        return None
    return {
        "rank": group.ranks[found.row].rank,
        "excess_ms": found.excess_ns / 1e6,
        "margin_ms": found.margin_ns / 1e6,
        "steps_over": found.over,
        "steps_led": found.led,
        "steps": found.steps,
        "effective_steps": found.effective,
        "p": found.p,
    }


def _gpu(one: RankGpu) -> Document:
    throttle = [{"reason": name, "share": share} for name, share in one.throttle]
    return {**_nulls(vars(one)), "throttle": throttle}


def _nulls(fields: Mapping[str, Any]) -> Document:
    """What is not known as null and the reason."""
    document: Document = {}
    for key, value in fields.items():
        if isinstance(value, Unavailable):
            document |= {key: None, f"{key}_reason": value.reason}
        else:
            document[key] = value
    return document


def _clock(clock: ClockFit) -> Document:
    return {
        "rank": clock.rank,
        "offset_ns": clock.offset_ns,
        "drift_ppb": clock.drift_ppb,
        "proved_low_ns": clock.low_ns,
        "proved_high_ns": clock.high_ns,
        "error_ns": clock.error_ns,
        "residual_ns": clock.residual_ns,
        "collectives": clock.collectives,
        "moved": clock.moved,
        "left_ns": clock.left_ns,
    }
