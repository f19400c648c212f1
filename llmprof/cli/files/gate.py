"""``llmprof compare --fail-on``: limits for ratios of B to A, and what became of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llmprof.analysis.timing.compare import Comparison
from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

_GATE = re.compile(r"\s*(tok_s|ttft)\s*([<>])\s*(\d+(?:\.\d+)?)\s*(%?)\s*")
MOST = 10.0
"""A limit above this without ``%`` was meant as tok/s or ms, not as a ratio."""

Outcome = Literal["failed", "inconclusive", "passed"]


@dataclass(frozen=True)
class Gate:
    """Fail when the ratio B / A is beyond the limit and the difference is seen."""

    text: str
    """As the user wrote it."""
    metric: str
    below: bool
    limit: float

    def judge(self, pair: Comparison) -> tuple[Outcome, str]:
        """What became of it, and a line that names the pair, the value and the limit.

        ``inconclusive``: there is no interval, or the value is beyond the limit but its interval
        reaches to no difference at all.

        Raises:
            UsageError: the two cannot be compared at all.
        """
        estimate = pair.tok_s_ratio if self.metric == "tok_s" else pair.ttft_ratio
        value, low, high = estimate.value, estimate.low, estimate.high
        if isinstance(value, Unavailable):
            raise UsageError(f"--fail-on {self.text}: {value.reason}")
        what = f"{one_line(pair.b, 60)} / {one_line(pair.a, 60)} {self.metric} {value:.3f}"
        limit = f"limit {'<' if self.below else '>'} {self.limit:.3f}"
        if isinstance(low, Unavailable) or isinstance(high, Unavailable):
            why = low.reason if isinstance(low, Unavailable) else "no upper bound"
            return "inconclusive", f"{what}, {limit}: no interval ({why})"
        line = f"{what} ({low:.3f}–{high:.3f}), {limit}"
        if not (value < self.limit if self.below else value > self.limit):
            return "passed", line
        if low <= 1 <= high:
            return "inconclusive", f"{line}: the interval holds 1, more rounds would tell"
        return "failed", line


def parse_gate(text: str) -> Gate:
    """``tok_s<98%`` (or ``tok_s<0.98``), ``ttft>1.05``: ratios of B to A.

    Raises:
        UsageError: none of these.
    """
    match = _GATE.fullmatch(text)
    if match is None:
        raise UsageError(f"--fail-on {text}: expected tok_s<98% or ttft>105% (B against A)")
    limit = float(match[3]) / (100 if match[4] else 1)
    if limit > MOST:
        raise UsageError(
            f"--fail-on {text}: the limit is a ratio of B to A, as 98% or 0.98, not a number of"
            " tok/s or ms"
        )
    return Gate(text.strip(), match[1], match[2] == "<", limit)
