"""Intervals that may be looked at after every round.

A 95 % interval that is computed again after each round, and whose run ends when it looks good, is
wrong far more often than one time in twenty. A *confidence sequence* covers the truth at all times
at once, so a run may end whenever it likes.

Ours is the one of the scale-invariant t-test with a normal mixture over the effect size. Under a
mean of m, with the right Haar prior 1/σ on the scale and δ = (μ − m)/σ ~ N(0, g), the Bayes factor

    B_n(m) = (1 + n g)^(−1/2) · ((1 + t²/ν) / (1 + t²/(ν (1 + n g))))^((ν + 1)/2)

with ν = n − 1 and t = √n (x̄ − m)/s is a nonnegative martingale of mean 1 in n ≥ 2 for independent
normal values of any σ, so by Ville's inequality P(B_n ≥ 1/α at any n) ≤ α, and the sequence is
{m: B_n(m) < 1/α}. Sources: Lai, "On confidence sequences", Ann. Statist. 4 (1976); Gönen et al.,
"The Bayesian two-sample t test", Am. Stat. 59 (2005) for the closed form; Pérez-Ortiz et al.,
"E-statistics, group invariance and anytime-valid testing", Ann. Statist. 52 (2024), and Wang and
Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"
(2023), for its validity at every stopping time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmprof.records import Unavailable

ALPHA = 0.05
SMALLEST = 5
"""Fewer values get no interval: with three, half of the world is inside."""
EFFECT_VARIANCE = 0.25
"""g. The sequence is valid for any; it is tightest where n g is about 8, here near 30 values."""


def interval_at(
    values: Sequence[float], alpha: float = ALPHA, effect_variance: float = EFFECT_VARIANCE
) -> tuple[float, float] | Unavailable:
    """Where the mean lies, at this look and at all others with a probability of 1 − alpha in all.

    Args:
        values: one a round or a batch of rounds, in their order; independent and about normal.

    Returns:
        Both ends; ``Unavailable`` for fewer than five values, and where so few values of this
        spread say nothing yet.
    """
    n = len(values)
    if n < SMALLEST:
        return Unavailable(f"{n} of the {SMALLEST} values that an interval needs")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    width = half_width(n, variance, alpha, effect_variance)
    if math.isinf(width):
        return Unavailable(f"{n} values say nothing yet at this confidence")
    return mean - width, mean + width


def half_width(
    n: int, variance: float, alpha: float = ALPHA, effect_variance: float = EFFECT_VARIANCE
) -> float:
    """Of the sequence after ``n`` values of this sample variance; ``inf`` where it has no end.

    B_n < 1/α solved for t: with A = 1 + n g and r = (√A / α)^(2/n), t² = ν (r − 1)/(1 − r/A) where
    r < A, and no bound otherwise.
    """
    scale = 1 + n * effect_variance
    ratio = (math.sqrt(scale) / alpha) ** (2 / n)
    if ratio >= scale:
        return math.inf
    t_squared = (n - 1) * (ratio - 1) / (1 - ratio / scale)
    return math.sqrt(t_squared * variance / n)


def values_needed(
    variance: float,
    wanted: float,
    alpha: float = ALPHA,
    effect_variance: float = EFFECT_VARIANCE,
    most: int = 100_000,
) -> int | None:
    """How many values of this variance bring the half-width down to ``wanted``.

    ``None`` where ``most`` do not.
    """
    low, high = SMALLEST, most
    if half_width(high, variance, alpha, effect_variance) > wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if half_width(middle, variance, alpha, effect_variance) <= wanted:
            high = middle
        else:
            low = middle + 1
    return low
