"""``llmprof compare --fail-on``: limits for ratios of B to A, and what became of each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmprof.analysis.timing.compare import Comparison
from llmprof.analysis.view.metrics import (
    CATEGORY,
    METRICS,
    MetricRatio,
    MetricSide,
    metric_ratio,
)
from llmprof.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK, UsageError
from llmprof.plaintext import one_line
from llmprof.records import Maybe, Unavailable

_GATE = re.compile(r"\s*(category:[^<>,]+?|\w+)\s*([<>])\s*(\d+(?:\.\d+)?)\s*(%|x?)\s*")
MOST = 10.0
"""A limit above this was meant as tok/s or ms, not as a ratio."""
AT_LIMIT = 0.01
"""A value without an interval that is this close to the limit tells nothing."""
_ALIAS = {"ttft": "ttft_ms"}

Outcome = Literal["failed", "inconclusive", "passed"]


@dataclass(frozen=True)
class Judgement:
    """What became of one gate for one pair."""

    gate: Gate
    a: str
    b: str
    outcome: Outcome
    value: Maybe
    low: Maybe
    """Of the interval, allowance for processes included; so is ``high``."""
    high: Maybe
    line: str
    """Names the pair, the value and the limit."""


@dataclass(frozen=True)
class Gate:
    """Fails where the ratio B / A is beyond the limit, the whole interval of it."""

    text: str
    """As the user wrote it."""
    metric: str
    below: bool
    limit: float

    def judge(self, pair: Comparison, found: MetricRatio) -> Judgement:
        """``failed``: the interval lies beyond the limit. ``passed``: none of it does.
        ``inconclusive``: neither; or, without an interval, the value is at the limit or there is
        none."""
        value, low, high = found.ratio.value, found.ratio.low, found.ratio.high
        name = f"{one_line(pair.b, 60)} / {one_line(pair.a, 60)} {self.metric}"
        limit = f"limit {'<' if self.below else '>'} {self.limit:.3f}"

        def told(outcome: Outcome, line: str, ends: tuple[Maybe, Maybe] = (low, high)) -> Judgement:
            return Judgement(self, pair.a, pair.b, outcome, value, *ends, line)

        if isinstance(value, Unavailable):
            return told("inconclusive", f"{name} n/a, {limit}: {one_line(value.reason)}")
        what = f"{name} {value:.3f}"
        if isinstance(low, Unavailable) or isinstance(high, Unavailable):
            why = low.reason if isinstance(low, Unavailable) else "no upper bound"
            line = f"{what}, {limit}: no interval ({why})"
            near = value <= 0 or abs(math.log(value / self.limit)) <= math.log1p(AT_LIMIT)
            if near or (self.metric not in _EXACT and not self.metric.startswith(CATEGORY)):
                return told("inconclusive", line)
            return told("failed" if self._beyond(value) else "passed", line)
        low, high = low * math.exp(-found.allowance), high * math.exp(found.allowance)
        line, ends = f"{what} ({low:.3f}–{high:.3f}), {limit}", (low, high)
        if self._beyond(low) and self._beyond(high):
            return told("failed", line, ends)
        if not self._beyond(low) and not self._beyond(high):
            return told("passed", line, ends)
        line = f"{line}: the interval holds the limit, more rounds would tell"
        return told("inconclusive", line, ends)

    def _beyond(self, value: float) -> bool:
        return value < self.limit if self.below else value > self.limit


_EXACT = ("busy_ms", "idle_ms", "kernels", "launches", "dram_gb_s")
"""Without an interval these say something still: the traced pass has few steps, not few rounds."""


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """``tok_s<98%``, ``ttft_ms>1.05x``, ``category:attention>1.05``: ratios of B to A; several in
    one text, apart by commas.

    Raises:
        UsageError: none of these.
    """
    return [_one(part, text) for text in texts for part in text.split(",")]


def _one(part: str, text: str) -> Gate:
    match = _GATE.fullmatch(part)
    metric = _ALIAS.get(match[1], match[1]) if match else ""
    if match is None or not (metric in METRICS or metric.startswith(CATEGORY)):
        raise UsageError(
            f"--fail-on {one_line(text, 80)}: expected METRIC<98% or METRIC>1.05x (B against A), of"
            f" {', '.join(METRICS)}, category:NAME"
        )
    limit = float(match[3]) / (100 if match[4] == "%" else 1)
    if limit > MOST or not limit:
        raise UsageError(
            f"--fail-on {one_line(text, 80)}: the limit is a ratio of B to A, as 98% or 0.98x, not"
            " a number of tok/s or ms"
        )
    return Gate(part.strip(), metric, match[2] == "<", limit)


def judge_all(
    gates: Sequence[Gate], pairs: Sequence[tuple[Comparison, MetricSide, MetricSide]]
) -> list[Judgement]:
    """Every gate of every pair.

    Raises:
        UsageError: two that cannot be compared, or no such category.
    """
    for gate in gates:
        for pair, _, _ in pairs:
            if gate.metric == "tok_s" and isinstance(pair.tok_s_ratio.value, Unavailable):
                raise UsageError(f"--fail-on {gate.text}: {pair.tok_s_ratio.value.reason}")
    return [
        gate.judge(pair, metric_ratio(gate.metric, pair, a, b))
        for gate in gates
        for pair, a, b in pairs
    ]


def exit_code(judged: Sequence[Judgement]) -> int:
    """The worst of them."""
    seen = {item.outcome for item in judged}
    if "failed" in seen:
        return EXIT_GATE
    return EXIT_INCONCLUSIVE if "inconclusive" in seen else EXIT_OK
