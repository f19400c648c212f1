"""Is engine B faster than engine A, and by how much: a ratio, its interval, a verdict in words.

Rounds of the same index were taken one right after the other, so what disturbs the machine slowly
disturbs both: the per-round log ratio cancels it, and their trimmed mean passes over pairs in which
something disturbed one side only. Runs that were not interleaved are compared by the
ratio of medians, each run resampled by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

from llmprof.analysis.timing.machines import machine_differences
from llmprof.analysis.timing.observed import (
    PROCESS_PAIRS,
    SMALLEST_DIFFERENCE,
    Method,
    Observed,
    Value,
    observe,
)
from llmprof.analysis.timing.stats import Estimate, ratio_interval
from llmprof.analysis.timing.steps import RoundSteps, timing_rounds
from llmprof.analysis.timing.verdict import Outcome, judge
from llmprof.errors import UsageError
from llmprof.goal import Goal
from llmprof.records import EngineRecord, Maybe, RunData, Unavailable

UNKNOWN = Unavailable("the two cannot be compared")


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
    """In tok/s: ``outcome`` is faster or slower."""
    verdict: str
    """``llamacpp is 3.10× as fast as torch (95 %: 2.98–3.21)``, ``torch and mine are the same
    within 1.6 % (95 %: 0.996–1.006)``, ``inconclusive: …``."""
    warnings: tuple[str, ...] = ()
    outcome: Outcome = "inconclusive"
    """Of b against a, in tok/s."""
    allowance: float = 0.0
    """For the difference of two processes of one engine, 0–1: the interval must be clear of 1 by
    this. 0 where the interval is over process pairs."""
    same_within: Maybe = UNKNOWN
    needed_s: Maybe = UNKNOWN
    """What an inconclusive comparison takes further, s."""
    method: Method = "rounds"
    """What the interval is over."""
    processes: int = 1
    """Pairs of them."""
    process_share: Maybe = UNKNOWN
    """Of the variance: what lies between process pairs, 0–1."""


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
    goal = Goal.of(data.info.workload)
    return _compare(a.label, b.label, rounds_a, rounds_b, paired=True, goal=goal)


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
    machines = tuple(machine_differences(name_a, data_a, a, name_b, data_b, b))
    traced_only = [
        name
        for name, data, engine in ((name_a, data_a, a), (name_b, data_b, b))
        if data.info.source != "driven" and not timing_rounds(data, engine)
    ]
    if traced_only:
        verb = "were" if len(traced_only) > 1 else "was"
        reason = f"{' and '.join(traced_only)} {verb} recorded under a profiler only"
        return replace(
            _incomparable(name_a, name_b, reason),
            verdict=f"no ratio of tok/s: {reason}",
            warnings=machines,
        )
    warnings = [
        *machines,
        "the runs were not interleaved: drift of the machine is in the ratio",
    ]
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
    parts = [words[key].format(workload[key]) for key in words if workload.get(key) is not None]
    return " · ".join(parts) or "workload unknown"


def _compare(
    a: str,
    b: str,
    rounds_a: tuple[RoundSteps, ...],
    rounds_b: tuple[RoundSteps, ...],
    *,
    paired: bool,
    warnings: tuple[str, ...] = (),
    goal: Goal | None = None,
) -> Comparison:
    for label, rounds in ((a, rounds_a), (b, rounds_b)):
        if not _by_index(rounds, "tok_s"):
            return _incomparable(a, b, f"{label} has no complete timing round")
    ratio, seen = round_ratio(rounds_a, rounds_b, "tok_s", paired, goal)
    several = min(_processes(rounds_a), _processes(rounds_b)) >= PROCESS_PAIRS
    allowance = 0.0 if several else math.log1p(SMALLEST_DIFFERENCE)
    if seen is None:
        count = min(len(_by_index(side, "tok_s")) for side in (rounds_a, rounds_b))
    else:
        count = len(ratio.samples)
    verdict = judge(a, b, ratio, seen, allowance, _value_s(rounds_a, rounds_b, seen))
    return Comparison(
        a=a,
        b=b,
        paired=paired,
        rounds=count,
        tok_s_ratio=ratio,
        ttft_ratio=round_ratio(rounds_a, rounds_b, "ttft_ns", paired, goal)[0],
        difference_seen=verdict.outcome in ("faster", "slower"),
        verdict=verdict.text,
        warnings=warnings,
        outcome=verdict.outcome,
        allowance=math.expm1(allowance),
        same_within=verdict.same_within,
        needed_s=verdict.needed_s,
        method=("processes" if several else "rounds") if seen is None else seen.method,
        processes=min(_processes(rounds_a), _processes(rounds_b))
        if seen is None
        else seen.processes,
        process_share=(
            Unavailable("the rounds are not paired") if seen is None else seen.process_share
        ),
    )


def round_ratio(
    rounds_a: tuple[RoundSteps, ...],
    rounds_b: tuple[RoundSteps, ...],
    field: str | Callable[[RoundSteps], float | None],
    paired: bool,
    goal: Goal | None,
) -> tuple[Estimate, Observed | None]:
    """B / A of one number a round, over complete rounds; and, where paired, how it is known."""
    a, b = _by_index(rounds_a, field), _by_index(rounds_b, field)
    if not paired:
        if min(_processes(rounds_a), _processes(rounds_b)) >= PROCESS_PAIRS:
            a, b = _by_process(rounds_a, a), _by_process(rounds_b, b)
        return _unpaired_ratio(a, b), None
    common = sorted(a.keys() & b.keys())
    if not common:
        return Estimate.missing("no round is complete in both engines"), None
    process_a, process_b = ({r.index: r.process for r in side} for side in (rounds_a, rounds_b))
    values = [Value(i, (process_a[i], process_b[i]), math.log(b[i] / a[i])) for i in common]
    seen = observe(values, goal)
    ratios = tuple(b[i] / a[i] for i in common)
    return Estimate(_exp(seen.mean), _exp(seen.low), _exp(seen.high), ratios, "trimmed"), seen


def _by_index(
    rounds: tuple[RoundSteps, ...], field: str | Callable[[RoundSteps], float | None]
) -> dict[int, float]:
    """Round index → positive value of a complete round."""
    of = (lambda r: getattr(r, field)) if isinstance(field, str) else field
    values = {r.index: of(r) for r in rounds if r.complete}
    return {i: v for i, v in values.items() if isinstance(v, (int, float)) and v > 0}


def _by_process(rounds: tuple[RoundSteps, ...], values: dict[int, float]) -> dict[int, float]:
    """Process → the median of its rounds: what is independent of one another."""
    kept: dict[int, list[float]] = {}
    for r in rounds:
        if r.index in values:
            kept.setdefault(r.process, []).append(values[r.index])
    return {process: median(several) for process, several in kept.items()}


def _processes(rounds: tuple[RoundSteps, ...]) -> int:
    return len({r.process for r in rounds if r.complete})


def _value_s(
    rounds_a: tuple[RoundSteps, ...], rounds_b: tuple[RoundSteps, ...], seen: Observed | None
) -> float | None:
    """What one of the interval's values took: both sides' rounds, from start to end."""
    if seen is None or not seen.values:
        return None
    whole = [(r.ttft_ns or 0) + (r.decode_ns or 0) for r in (*rounds_a, *rounds_b) if r.complete]
    return sum(whole) / 1e9 / seen.values


def _unpaired_ratio(a: dict[int, float], b: dict[int, float]) -> Estimate:
    if not a or not b:
        return Estimate.missing("no complete round on one side")
    values_a, values_b = tuple(a.values()), tuple(b.values())
    bounds = ratio_interval(values_a, values_b)
    low, high = (bounds, bounds) if isinstance(bounds, Unavailable) else bounds
    return Estimate(median(values_b) / median(values_a), low, high)


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
    verdict = judge(a, b, missing, None, 0.0, None)
    return Comparison(a, b, False, 0, missing, missing, False, verdict.text)
