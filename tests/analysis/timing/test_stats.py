"""Quantiles, Student's t and the bootstrap interval."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from llmprof.analysis.timing.stats import (
    SMALLEST_SAMPLE,
    Statistic,
    batch_means,
    distribution,
    estimate,
    expanded_tail,
    interval,
)
from llmprof.analysis.timing.t_quantiles import student_t_quantile
from llmprof.records import Unavailable


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [  # printed tables
        (0.975, 1, 12.7062),
        (0.975, 4, 2.77645),
        (0.975, 7, 2.36462),
        (0.975, 11, 2.20099),
        (0.995, 2, 9.92484),
        (0.9995, 1, 636.619),
        (0.90, 3, 1.63774),
        (0.95, 30, 1.69726),
        (0.975, 1000, 1.96234),
        (0.025, 4, -2.77645),
        (0.5, 9, 0.0),
    ],
)
def test_t_quantile_equals_the_tables(p: float, df: int, t: float) -> None:
    assert student_t_quantile(p, df) == pytest.approx(t, rel=1e-5, abs=1e-7)


def test_the_tabulated_t_quantiles_are_those_of_scipy() -> None:
    from scipy.special import stdtrit

    for df in range(1, 200):
        wanted = float(stdtrit(df, 0.975))
        assert student_t_quantile(0.975, df) == pytest.approx(wanted, rel=1e-12)


def test_the_usual_intervals_import_no_scipy() -> None:
    code = (
        "import sys; from llmprof.analysis.timing.stats import estimate;"
        "[estimate([1.0, 2.0] * n) for n in (3, 8, 16, 32)];"
        "print('scipy' in sys.modules); estimate([1.0, 2.0] * 40); print('scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_expanded_tail_is_wider_than_the_plain_one_and_shrinks_to_it() -> None:
    tails = [expanded_tail(n) for n in (5, 8, 12, 100, 100_000)]
    assert tails == sorted(tails)
    assert tails[0] == pytest.approx(0.00095, abs=1e-5)  # Φ(−√(5/4) · 2.77645)
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)


@pytest.mark.parametrize("n", [5, 8, 12])
@pytest.mark.parametrize("statistic", ["median", "mean", "trimmed"])
def test_the_interval_covers_the_truth(n: int, statistic: Statistic) -> None:
    """Log-normal noise of 5 %; the median of the rates, the mean of the log ratios."""
    random = np.random.default_rng(2)
    noise = random.normal(0, 0.05, size=(400, n))
    truth = 0.0
    if statistic == "median":
        noise, truth = np.exp(noise), 1.0
    covered = 0
    for sample in noise.tolist():
        bounds = interval.__wrapped__(tuple(sample), statistic)
        covered += bounds[0] <= truth <= bounds[1]
    assert covered / 400 >= 0.92


def test_the_interval_of_the_same_rounds_is_the_same() -> None:
    sample = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert interval.__wrapped__(sample) == interval.__wrapped__(sample)


def test_few_rounds_have_a_value_but_no_interval() -> None:
    one = estimate([3.0])
    assert one.value == 3.0
    assert one.low == Unavailable("1 round: an interval needs at least 5")
    assert isinstance(estimate([1.0] * (SMALLEST_SAMPLE - 1)).high, Unavailable)
    assert estimate([2.0] * SMALLEST_SAMPLE).low == 2.0


def test_distribution_interpolates_linearly() -> None:
    found = distribution([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.count, found.min, found.p50, found.max, found.mean) == (5, 1, 3, 5, 3)
    assert found.p90 == pytest.approx(4.6)
    assert found.std == pytest.approx(2.5**0.5)
    assert distribution([7.0]).std == 0
    with pytest.raises(ValueError, match="at least one"):
        distribution([])


def test_neighbours_that_are_alike_do_not_narrow_the_interval() -> None:
    """A disturbance that lasts for some rounds: the plain interval misses the truth too often."""
    random = np.random.default_rng(4)
    missed = {"plain": 0, "batches": 0}
    for _ in range(200):
        noise = np.repeat(random.normal(0, 0.05, 40), 4) + random.normal(0, 0.01, 160)
        for name, samples in (("plain", tuple(noise)), ("batches", batch_means(noise))):
            bounds = interval(samples, "trimmed")
            assert not isinstance(bounds, Unavailable)
            missed[name] += not bounds[0] <= 0 <= bounds[1]
    assert missed["plain"] > 40
    assert missed["batches"] < 24


def test_few_samples_are_left_as_they_are() -> None:
    assert batch_means([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)
    assert len(batch_means(range(160))) == 16
