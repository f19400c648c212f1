"""What a gate may limit: the ratio B / A of one metric, with its interval where there is one.

Metrics of the timing pass have a value a round, those of the traced pass one a step; of a category
only the mean step is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from llmprof.analysis.timing.compare import Comparison, round_ratio
from llmprof.analysis.timing.stats import Estimate, ratio_interval
from llmprof.analysis.timing.steps import RoundSteps, timing_rounds
from llmprof.analysis.view.traced import EngineTrace
from llmprof.errors import UsageError
from llmprof.goal import Goal
from llmprof.records import EngineRecord, RunData, Unavailable

CATEGORY = "category:"


@dataclass(frozen=True)
class MetricSide:
    """One engine of one run."""

    data: RunData
    engine: EngineRecord
    trace: EngineTrace


@dataclass(frozen=True)
class MetricRatio:
    """B / A."""

    ratio: Estimate
    allowance: float
    """For the difference of processes, logarithmic; 0 where it plays no part."""


def _decode_per_step(r: RoundSteps) -> float | None:
    return r.decode_ns / r.steps if r.decode_ns and r.steps else None


def _quantile(share: float) -> Callable[[RoundSteps], float | None]:
    return lambda r: float(np.quantile(r.step_ns, share)) if r.step_ns else None


def _energy(r: RoundSteps) -> float | None:
    return None if isinstance(r.energy_j, Unavailable) or not r.tokens else r.energy_j / r.tokens


_ROUNDS: dict[str, Callable[[RoundSteps], float | None]] = {
    "tpot_ms": _decode_per_step,
    "itl_p95_ms": _quantile(0.95),
    "itl_p99_ms": _quantile(0.99),
    "j_per_token": _energy,
}
_STEPS = {
    "busy_ms": "busy_ns",
    "idle_ms": "idle_ns",
    "kernels": "kernels",
    "launches": "launches",
}
METRICS = ("tok_s", "ttft_ms", *_ROUNDS, *_STEPS, "dram_gb_s")
"""And ``category:NAME``."""


def metric_ratio(metric: str, pair: Comparison, a: MetricSide, b: MetricSide) -> MetricRatio:
    """The ratio B / A; its ``value`` is ``Unavailable`` where it cannot be had.

    Raises:
        UsageError: neither has a category of that name.
    """
    allowance = math.log1p(pair.allowance)
    if metric in ("tok_s", "ttft_ms"):
        return MetricRatio(pair.tok_s_ratio if metric == "tok_s" else pair.ttft_ratio, allowance)
    if metric in _ROUNDS:
        goal = Goal.of(a.data.info.workload) if a.data is b.data else None
        rounds = timing_rounds(a.data, a.engine), timing_rounds(b.data, b.engine)
        found = round_ratio(*rounds, _ROUNDS[metric], pair.paired, goal)[0]
        if isinstance(found.value, Unavailable):
            found = Estimate.missing(f"no round of both has {metric}")
        return MetricRatio(found, allowance)
    if metric in _STEPS:
        return MetricRatio(_of_steps(_STEPS[metric], a, b), 0.0)
    if metric == "dram_gb_s":
        return MetricRatio(_dram(a, b), 0.0)
    return MetricRatio(_category(metric.removeprefix(CATEGORY), a, b), 0.0)


def _of_steps(field: str, a: MetricSide, b: MetricSide) -> Estimate:
    both = []
    for side in (a, b):
        kernels = side.trace.kernels
        if isinstance(kernels, Unavailable):
            return Estimate.missing(f"{side.engine.label}: {kernels.reason}")
        if isinstance(kernels.steps, Unavailable):
            return Estimate.missing(f"{side.engine.label}: {kernels.steps.reason}")
        if kernels.idle_at_most and field == "idle_ns":
            return Estimate.missing(f"{side.engine.label}: {kernels.idle_at_most}")
        both.append([float(getattr(s, field)) for s in kernels.steps if s.counted])
    return _medians(*both)


def _dram(a: MetricSide, b: MetricSide) -> Estimate:
    both = []
    for side in (a, b):
        sampled = side.trace.sampled
        if isinstance(sampled, Unavailable):
            return Estimate.missing(f"{side.engine.label}: {sampled.reason}")
        several = [value for value in sampled.measured_gb_s if value is not None]
        if not several:
            if isinstance(sampled.mean_measured_gb_s, Unavailable):
                return Estimate.missing(f"{side.engine.label}: {sampled.mean_measured_gb_s.reason}")
            several = [sampled.mean_measured_gb_s]
        both.append(several)
    return _medians(*both)


def _medians(a: Sequence[float], b: Sequence[float]) -> Estimate:
    if not a or not b or median(a) <= 0:
        return Estimate.missing("no step to compare with, or A has none of it")
    if min(a) <= 0:  # a resampled median may be 0, and nothing can be divided by that
        no = Unavailable("A has steps without it")
        return Estimate(median(b) / median(a), no, no)
    bounds = ratio_interval(tuple(a), tuple(b))
    low, high = (bounds, bounds) if isinstance(bounds, Unavailable) else bounds
    return Estimate(median(b) / median(a), low, high)


def _category(name: str, a: MetricSide, b: MetricSide) -> Estimate:
    parts = []
    for side in (a, b):
        found = side.trace.parts
        if isinstance(found, Unavailable):
            return Estimate.missing(f"{side.engine.label}: {found.reason}")
        parts.append(found.parts_ns)
    known = sorted(parts[0].keys() | parts[1].keys())
    if name not in known:
        raise UsageError(f"--fail-on category:{name}: no such category; here: {', '.join(known)}")
    if not parts[0].get(name):
        return Estimate.missing(f"{a.engine.label} spends nothing on {name}")
    no = Unavailable("of a category only the mean step is known")
    return Estimate(parts[1].get(name, 0) / parts[0][name], no, no)
