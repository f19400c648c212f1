"""From per-round log ratios to their mean, an interval that may be believed, and its allowance.

What one value is depends on the run:

* from five process pairs on, the mean of each pair: two processes of one engine differ for life
  (memory layout, hash seeds, allocator), so only values of fresh processes are independent. The
  interval is Student's over those means (Kalibera and Jones, "Rigorous benchmarking in reasonable
  time", ISMM 2013: repeat at the highest level that varies);
* in a run that ends by precision or time, means of batches of consecutive rounds, of a size fixed
  beforehand: what disturbs a machine lasts for several rounds. Such a run looks at the *width* of
  its interval only, never at its place; the mean of normal values is independent of their
  variance, so this does not favour any result (Stein, "A two-sample test", Ann. Math. Stat. 16,
  1945; Chow and Robbins, "On the asymptotic theory of fixed-width sequential confidence intervals",
  ibid. 36, 1965; with a dozen values at least, Starr, ibid. 37, 1966). Its interval is Student's;
* while a run goes on, and where its user ended it, having seen an interval: the confidence sequence
  (``sequential``), which holds whenever one looks;
* otherwise, so many rounds as were asked for: the bootstrap (``stats``).

Below five process pairs the interval knows nothing of processes: ``allowance`` is added to it
before anything is called different.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from llmprof.analysis.timing.sequential import interval_at, values_needed
from llmprof.analysis.timing.stats import (
    CONFIDENCE,
    SMALLEST_SAMPLE,
    batch_means,
    estimate,
    trimmed_mean,
)
from llmprof.analysis.timing.t_quantiles import student_t_quantile
from llmprof.goal import Goal
from llmprof.records import Maybe, Unavailable

SMALLEST_DIFFERENCE = 0.01
"""What two processes of one engine differ by at most, for life. Twenty pairs of torch processes on
one core: half of them by less than 0.5 %, the largest by 1.0 % (``docs/truth.md``)."""
PROCESS_PAIRS = 5
"""From here on processes speak for themselves."""
LEAST_VALUES = 12
"""Before precision may end a run: by fewer the variance is known too badly."""

Method = Literal["processes", "batches", "sequence", "rounds"]


@dataclass(frozen=True)
class Value:
    """One pair of rounds."""

    index: int
    process: tuple[int, int]
    """Process ids of both sides."""
    log: float


@dataclass(frozen=True)
class Observed:
    """Logarithms throughout."""

    mean: Maybe
    low: Maybe
    high: Maybe
    method: Method
    values: int
    """That the interval is over."""
    allowance: float
    """For the difference of processes."""
    processes: int
    """Pairs of them."""
    process_share: Maybe
    """Of the variance of a batch: what lies between process pairs, 0–1."""

    @property
    def half_width(self) -> float:
        """``inf`` without an interval."""
        if isinstance(self.low, Unavailable) or isinstance(self.high, Unavailable):
            return math.inf
        return (self.high - self.low) / 2


def observe(values: Sequence[Value], goal: Goal | None) -> Observed:
    """What the values say (at least one)."""
    pairs = list(dict.fromkeys(v.process for v in values))
    groups = [[v.log for v in values if v.process == pair] for pair in pairs]
    share = _process_share(groups, goal)
    allowance = 0.0 if len(pairs) >= PROCESS_PAIRS else math.log1p(SMALLEST_DIFFERENCE)
    method: Method
    if len(pairs) >= PROCESS_PAIRS:
        method, used = "processes", [trimmed_mean(group) for group in groups]
    elif goal is not None and goal.rounds is None:
        method = "batches" if goal.ended_by else "sequence"
        used = [mean for group in groups for mean in batches(group, goal.batch_rounds)]
        if not used:
            used = [v.log for v in values]
    else:
        found = estimate(batch_means([v.log for v in values]), "trimmed")
        return Observed(
            found.value, found.low, found.high, "rounds", len(values), allowance, len(pairs), share
        )
    bounds = interval_at(used) if method == "sequence" else student_interval(used)
    low, high = (bounds, bounds) if isinstance(bounds, Unavailable) else bounds
    return Observed(fmean(used), low, high, method, len(used), allowance, len(pairs), share)


def batches(logs: Sequence[float], size: int) -> list[float]:
    """Trimmed means of consecutive values; what does not fill a batch is left out."""
    whole = len(logs) // size * size
    return [trimmed_mean(logs[i : i + size]) for i in range(0, whole, size)]


def student_interval(values: Sequence[float]) -> tuple[float, float] | Unavailable:
    """Student's interval of the mean."""
    n = len(values)
    if n < SMALLEST_SAMPLE:
        return Unavailable(f"{n} of the {SMALLEST_SAMPLE} values that an interval needs")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    width = student_t_quantile((1 + CONFIDENCE) / 2, n - 1) * math.sqrt(variance / n)
    return mean - width, mean + width


def precise(values: Sequence[float], wanted: float) -> bool:
    """May precision end the run: the half-width is down to ``wanted``, now and one value ago.

    Args:
        values: means of batches.
        wanted: in logarithms.
    """
    return all(_width(values[:n]) <= wanted for n in (len(values), len(values) - 1))


def _width(values: Sequence[float]) -> float:
    if len(values) < LEAST_VALUES:
        return math.inf
    bounds = student_interval(values)
    return math.inf if isinstance(bounds, Unavailable) else (bounds[1] - bounds[0]) / 2


def more_values(observed: Observed, wanted: float) -> int | None:
    """How many more values bring the half-width down to ``wanted``; ``None``: not to be said."""
    n, width = observed.values, observed.half_width
    if math.isinf(width):
        return max(1, SMALLEST_SAMPLE - n) if n < SMALLEST_SAMPLE else None
    if wanted <= 0:
        return None
    if observed.method == "sequence":
        # The variance that gives this width, from its square law.
        unit = values_needed(1.0, wanted / width * _sequence_width(n))
        return None if unit is None else max(1, unit - n)
    return max(1, math.ceil(n * (width / wanted) ** 2) - n)


def _sequence_width(n: int) -> float:
    from llmprof.analysis.timing.sequential import half_width

    return half_width(n, 1.0)


def _process_share(groups: Sequence[Sequence[float]], goal: Goal | None) -> Maybe:
    """One-way analysis of variance with random effects: σ²_between / (σ²_between + σ²_within).

    Of batch means where the run has batches, else of rounds; groups of two values at least.
    """
    size = goal.batch_rounds if goal is not None and goal.rounds is None else 1
    parts = [batches(group, size) for group in groups]
    parts = [part for part in parts if len(part) > 1]
    if len(parts) < 2:
        return Unavailable("one process pair: how processes differ is not seen")
    total = sum(map(len, parts))
    grand = fmean([value for part in parts for value in part])
    between = sum(len(p) * (fmean(p) - grand) ** 2 for p in parts) / (len(parts) - 1)
    within = sum((len(p) - 1) * variance(p) for p in parts) / (total - len(parts))
    size_0 = (total - sum(len(p) ** 2 for p in parts) / total) / (len(parts) - 1)
    component = max(0.0, (between - within) / size_0)
    spread = component + within
    return component / spread if spread > 0 else 0.0
