"""Is engine B faster than engine A, and by how much: a ratio, its interval, a verdict in words.

Rounds of the same index were taken one right after the other, so what disturbs the machine slowly
disturbs both: the per-round log ratio cancels it, and their trimmed mean passes over pairs in which
something disturbed one side only. Runs that did not take turns are compared by the
ratio of medians, each run resampled by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

from llmprof.analysis.timing.stats import Estimate, batch_means, estimate, ratio_interval
from llmprof.analysis.timing.steps import RoundSteps, timing_rounds
from llmprof.errors import UsageError
from llmprof.records import EngineRecord, Maybe, RunData, Unavailable

SMALLEST_DIFFERENCE = 0.01
"""A ratio closer to 1 than this is no difference, however narrow its interval.

The interval covers what changes from round to round. It cannot cover what stays for the life of a
process: two processes of the same engine lie elsewhere in memory (pages, cache sets, allocator,
hash seeds) and differ in every round alike. Twenty pairs of torch processes on one core: half of
them by less than 0.5 %, the largest by 1.0 % (``benchmarks/same_engine_twice.py``)."""


@dataclass(frozen=True)
class Comparison:
    """Engine ``b`` against engine ``a``, the baseline."""

    a: str
    b: str
    paired: bool
    rounds: int
    """Pairs of rounds, or rounds of the smaller side when not paired."""
    tok_s_ratio: Estimate
    """tok/s of b / tok/s of a; > 1: b decodes faster."""
    ttft_ratio: Estimate
    """TTFT of b / TTFT of a; < 1: b is sooner."""
    difference_seen: bool
    """In tok/s: the interval excludes 1 and the ratio is off 1 by ``SMALLEST_DIFFERENCE``."""
    verdict: str
    """``llamacpp is 3.10× faster than torch (2.98–3.21)``, ``no difference seen
    between torch and mine (0.98–1.01)``."""
    warnings: tuple[str, ...] = ()


def compare_to_first(data: RunData) -> tuple[Comparison, ...]:
    """Every other engine against the first, which is the baseline."""
    return tuple(compare_engines(data, data.engines[0], other) for other in data.engines[1:])


def compare_all(data: RunData) -> tuple[Comparison, ...]:
    """Every pair of engines, the earlier one as baseline."""
    return tuple(compare_engines(data, a, b) for a, b in combinations(data.engines, 2))


def compare_engines(data: RunData, a: EngineRecord, b: EngineRecord) -> Comparison:
    """Two engines of one run; by pairs of rounds where the engines took turns."""
    rounds_a, rounds_b = timing_rounds(data, a), timing_rounds(data, b)
    if data.info.schedule == "blocks":
        warning = "the engines ran one after the other: drift of the machine is in the ratio"
        return _compare(a.label, b.label, rounds_a, rounds_b, paired=False, warnings=(warning,))
    return _compare(a.label, b.label, rounds_a, rounds_b, paired=True)


def compare_runs(
    data_a: RunData, label_a: str, data_b: RunData, label_b: str, *, force: bool = False
) -> Comparison:
    """Engines of two runs, which cannot be paired.

    Args:
        force: compare different workloads all the same, with a warning in the result. Otherwise
            such a comparison is ``Unavailable``.

    Raises:
        UsageError: a run has no engine of that label.
    """
    a, b = find_engine(data_a, label_a), find_engine(data_b, label_b)
    name_a, name_b = a.label, b.label
    if name_a == name_b:
        name_a, name_b = f"{name_a} (A)", f"{name_b} (B)"
    traced_only = [
        name
        for name, data, engine in ((name_a, data_a, a), (name_b, data_b, b))
        if data.info.source != "driven" and not timing_rounds(data, engine)
    ]
    if traced_only:
        verb = "were" if len(traced_only) > 1 else "was"
        reason = f"{' and '.join(traced_only)} {verb} recorded under a profiler only"
        return replace(
            _incomparable(name_a, name_b, reason), verdict=f"no ratio of tok/s: {reason}"
        )
    warnings = ["the runs did not take turns: drift of the machine is in the ratio"]
    mismatch = _workload_mismatch(data_a, data_b)
    if mismatch and not force:
        return _incomparable(name_a, name_b, mismatch)
    if mismatch:
        warnings.append(mismatch)
    return _compare(
        name_a,
        name_b,
        timing_rounds(data_a, a),
        timing_rounds(data_b, b),
        paired=False,
        warnings=tuple(warnings),
    )


def find_engine(data: RunData, label: str) -> EngineRecord:
    """The engine of that label.

    Raises:
        UsageError: there is none; names those that there are.
    """
    for engine in data.engines:
        if engine.label == label:
            return engine
    known = ", ".join(e.label for e in data.engines) or "none"
    raise UsageError(
        f"{data.shown_path or 'the run'} has no engine {label!r}; its engines: {known}"
    )


def workload_text(workload: dict[str, Any]) -> str:
    """``prompt 7 · decode 128 · batch 1 · 8 rounds``, of what the workload says."""
    words = {"prompt_len": "prompt {}", "decode_len": "decode {}", "batch": "batch {}"}
    words["rounds"] = "{} rounds"
    parts = [words[key].format(workload[key]) for key in words if key in workload]
    return " · ".join(parts) or "workload unknown"


def _compare(
    a: str,
    b: str,
    rounds_a: tuple[RoundSteps, ...],
    rounds_b: tuple[RoundSteps, ...],
    *,
    paired: bool,
    warnings: tuple[str, ...] = (),
) -> Comparison:
    rates_a, rates_b = _by_index(rounds_a, "tok_s"), _by_index(rounds_b, "tok_s")
    for label, rates in ((a, rates_a), (b, rates_b)):
        if not rates:
            return _incomparable(a, b, f"{label} has no complete timing round")
    ratio_of = _paired_ratio if paired else _unpaired_ratio
    ratio = ratio_of(rates_a, rates_b)
    seen = _difference_seen(ratio)
    rounds = len(rates_a.keys() & rates_b.keys()) if paired else min(len(rates_a), len(rates_b))
    return Comparison(
        a=a,
        b=b,
        paired=paired,
        rounds=rounds,
        tok_s_ratio=ratio,
        ttft_ratio=ratio_of(_by_index(rounds_a, "ttft_ns"), _by_index(rounds_b, "ttft_ns")),
        difference_seen=seen,
        verdict=_verdict(a, b, ratio, seen),
        warnings=warnings,
    )


def _by_index(rounds: tuple[RoundSteps, ...], field: str) -> dict[int, float]:
    """Round index → positive value of a complete round."""
    values = {r.index: getattr(r, field) for r in rounds if r.complete}
    return {i: v for i, v in values.items() if isinstance(v, (int, float)) and v > 0}


def _paired_ratio(a: dict[int, float], b: dict[int, float]) -> Estimate:
    common = sorted(a.keys() & b.keys())
    if not common:
        return Estimate.missing("no round is complete in both engines")
    logs = estimate(batch_means([math.log(b[i] / a[i]) for i in common]), "trimmed")
    ratios = tuple(b[i] / a[i] for i in common)
    return Estimate(_exp(logs.value), _exp(logs.low), _exp(logs.high), ratios, "trimmed")


def _unpaired_ratio(a: dict[int, float], b: dict[int, float]) -> Estimate:
    if not a or not b:
        return Estimate.missing("no complete round on one side")
    values_a, values_b = tuple(a.values()), tuple(b.values())
    bounds = ratio_interval(values_a, values_b)
    low, high = (bounds, bounds) if isinstance(bounds, Unavailable) else bounds
    return Estimate(median(values_b) / median(values_a), low, high)


def _difference_seen(ratio: Estimate) -> bool:
    if isinstance(ratio.value, Unavailable):
        return False
    if isinstance(ratio.low, Unavailable) or isinstance(ratio.high, Unavailable):
        return False
    far = abs(math.log(ratio.value)) > math.log1p(SMALLEST_DIFFERENCE)
    return far and not ratio.low <= 1 <= ratio.high


def _verdict(a: str, b: str, ratio: Estimate, seen: bool) -> str:
    value, low, high = ratio.value, ratio.low, ratio.high
    if isinstance(value, Unavailable):
        return f"{a} and {b} cannot be compared: {value.reason}"
    if isinstance(low, Unavailable) or isinstance(high, Unavailable):
        why = low.reason if isinstance(low, Unavailable) else ""
        return f"no verdict: {b} / {a} is {value:.2f}×, but without an interval ({why})"
    if not seen:
        digits = 3 if high - low < 0.02 else 2
        return f"no difference seen between {a} and {b} ({low:.{digits}f}–{high:.{digits}f})"
    if value < 1:
        a, b, value, low, high = b, a, 1 / value, 1 / high, 1 / low
    digits = 3 if value < 1.1 else 2  # a ratio that was seen to differ never reads 1.00
    return f"{b} is {value:.{digits}f}× faster than {a} ({low:.{digits}f}–{high:.{digits}f})"


def _exp(value: Maybe) -> Maybe:
    return value if isinstance(value, Unavailable) else math.exp(value)


def _workload_mismatch(a: RunData, b: RunData) -> str | None:
    """Why the two runs did not decode the same thing; ``None`` when they did."""
    hash_a, hash_b = (d.info.workload.get("workload_sha256") for d in (a, b))
    if hash_a is None or hash_b is None:
        return "a run does not say which workload it decoded"
    if hash_a == hash_b:
        return None
    text_a, text_b = workload_text(a.info.workload), workload_text(b.info.workload)
    if text_a == text_b:
        return f"the runs decoded different prompt ids ({text_a})"
    return f"the runs decoded different workloads: {text_a} against {text_b}"


def _incomparable(a: str, b: str, reason: str) -> Comparison:
    missing = Estimate.missing(reason)
    return Comparison(a, b, False, 0, missing, missing, False, _verdict(a, b, missing, False))
