"""The confidence sequence: its closed form, and its error rate under looks after every value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprof.analysis.timing.sequential import (
    ALPHA,
    EFFECT_VARIANCE,
    SMALLEST,
    half_width,
    interval_at,
    values_needed,
)
from llmprof.analysis.timing.stats import estimate
from llmprof.records import Unavailable


def bayes_factor(values: list[float], mean: float) -> float:
    """The definition, in logarithms."""
    n = len(values)
    t2 = n * (np.mean(values) - mean) ** 2 / np.var(values, ddof=1)
    a = 1 + n * EFFECT_VARIANCE
    log = -0.5 * math.log(a) + n / 2 * math.log((1 + t2 / (n - 1)) / (1 + t2 / ((n - 1) * a)))
    return math.exp(log)


@given(st.integers(8, 200), st.floats(1e-6, 1e3), st.integers(0, 1000))
def test_both_ends_are_where_the_bayes_factor_reaches_its_bound(
    n: int, spread: float, seed: int
) -> None:
    values = (np.random.default_rng(seed).standard_normal(n) * spread).tolist()
    bounds = interval_at(values)
    assert not isinstance(bounds, Unavailable)
    for end in bounds:
        assert bayes_factor(values, end) == pytest.approx(1 / ALPHA, rel=1e-6)


def test_too_few_values_have_no_interval() -> None:
    assert isinstance(interval_at([1.0, 2.0, 3.0, 4.0]), Unavailable)
    assert math.isinf(half_width(SMALLEST - 3, 1.0))


def test_looking_after_every_value_keeps_the_error_rate() -> None:
    """2,000 series of 200 values: the sequence ever excludes the truth in at most 5 % of them,
    where the fixed interval, looked at as often, does so in a third."""
    series = np.random.default_rng(1).standard_normal((2000, 200))
    n = np.arange(1, 201)
    mean = np.cumsum(series, axis=1) / n
    square = np.cumsum(series**2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (square - n * mean**2) / (n - 1)
    width = np.array([half_width(int(k), 1.0) if k >= SMALLEST else np.inf for k in n])
    wrong = (np.abs(mean) > width * np.sqrt(variance))[:, SMALLEST - 1 :].any(axis=1)
    assert wrong.mean() <= 0.05
    plain = np.abs(mean) > 2 * np.sqrt(variance / n)
    assert plain[:, SMALLEST - 1 :].any(axis=1).mean() > 0.3


def test_the_price_of_looking_is_a_wider_interval() -> None:
    """About 1.5 times the fixed interval's width at 30 values."""
    fixed = 2.045 / math.sqrt(30)
    assert 1.3 < half_width(30, 1.0) / fixed < 1.8
    values = np.random.default_rng(0).standard_normal(30).tolist()
    once = estimate(values, "mean")
    always = interval_at(values)
    assert not isinstance(always, Unavailable)
    assert always[0] < once.low and once.high < always[1]  # type: ignore[operator]


@given(st.floats(1e-8, 10.0), st.floats(1e-3, 1.0))
def test_values_needed_is_the_first_that_is_enough(variance: float, wanted: float) -> None:
    n = values_needed(variance, wanted)
    if n is None:
        assert half_width(100_000, variance) > wanted
        return
    assert half_width(n, variance) <= wanted
    assert n == SMALLEST or half_width(n - 1, variance) > wanted
