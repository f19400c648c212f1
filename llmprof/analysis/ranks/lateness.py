"""Is one rank late, or do the ranks wait for one another by chance?

In each step a rank's *excess* is how long the others waited for it beyond how long they waited for
any other rank. Late is the rank whose excess is over a margin in more than half of the steps,
which a sign test has to show: it asks for no shape of the jitter, and one slow step is one step,
however slow. Steps that are alike in a row count as fewer (the effective sample size of an AR(1)
process), and each rank had its chance to be called late, so the level is divided among them
(Bonferroni).

The margin is what would not be called a difference between two runs of one engine either, and at
least what clocks that are slightly apart feign: an offset makes one rank look late in every
collective.
How often balanced ranks are called late: ``tests/analysis/test_lateness.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.timing.observed import SMALLEST_DIFFERENCE
from llmprof.runfile.trace.rows import Ints

LEVEL = 0.01
"""Of the test over all ranks: without any margin balanced ranks are called late so often."""
_MOST = 1000
"""Steps that the test counts at most: more make no difference, and the sum stays exact."""


@dataclass(frozen=True)
class Lateness:
    """Of the rank that the others waited for the most."""

    row: int
    excess_ns: int
    """Median over the steps."""
    margin_ns: int
    over: int
    """Steps whose excess is over the margin."""
    led: int
    """Steps in which the others waited for it more than for any other rank."""
    steps: int
    """With a collective that all ranks share."""
    effective: int
    """So many independent steps they are worth."""
    p: float
    """Chance of as many steps over the margin, were it over in half of them; times the ranks."""
    needed: int
    """Independent steps that can show a late rank at all."""

    @property
    def late(self) -> bool:
        return self.p <= LEVEL


def lateness(late_ns: Ints, margin_ns: int) -> Lateness | None:
    """From how long all others waited for each rank alone, shape (ranks, steps).

    ``None`` where there is no step.
    """
    ranks, steps = late_ns.shape
    if ranks < 2 or not steps:
        return None
    ordered = np.sort(late_ns, 0)
    top = ordered[-1]
    others = np.where(late_ns == top, ordered[-2], top)
    excess = late_ns - others
    usual = np.median(excess, 1)
    row = int(usual.argmax())
    over = excess[row] > margin_ns
    effective = min(_MOST, _effective(over))
    count = int(np.count_nonzero(over))
    p = min(1.0, ranks * _tail(effective, math.floor(effective * count / steps)))
    return Lateness(
        row=row,
        excess_ns=round(float(usual[row])),
        margin_ns=margin_ns,
        over=count,
        led=int(np.count_nonzero(excess[row] > 0)),
        steps=steps,
        effective=effective,
        p=p,
        needed=math.ceil(math.log2(ranks / LEVEL)),
    )


def margin_ns(step_ns: float, feigned_ns: int) -> int:
    """Excess that is not called lateness.

    Args:
        feigned_ns: what the clocks may feign in a step.
    """
    return max(round(step_ns * SMALLEST_DIFFERENCE), feigned_ns)


def _effective(over: NDArray[np.bool_]) -> int:
    """Independent steps that these are worth: n (1 - r) / (1 + r) with r the correlation of a step
    with the next one, which short series underestimate by (1 + 4 r) / n (Kendall 1954)."""
    count = len(over)
    if count < 3 or over.all() or not over.any():
        return count
    value = over - over.mean()
    follows = float((value[1:] * value[:-1]).sum() / (value * value).sum())
    r = min(0.99, max(0.0, follows + (1 + 4 * follows) / count))
    return max(1, math.floor(count * (1 - r) / (1 + r)))


def _tail(count: int, at_least: int) -> float:
    """Chance of at least so many heads in ``count`` throws of a fair coin."""
    ways = sum(math.comb(count, k) for k in range(at_least, count + 1))
    return float(ways / (1 << count))
