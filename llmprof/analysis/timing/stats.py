"""Quantiles and intervals for a handful of rounds.

Every resampling starts from the fixed ``SEED``: the same rounds always give the same interval, on
every machine (numpy's PCG64 is a documented, versioned stream).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmprof.analysis.timing.t_quantiles import student_t_quantile
from llmprof.records import Maybe, Unavailable

Statistic = Literal["median", "mean", "trimmed"]

SEED = 20150901
RESAMPLES = 10_000
CONFIDENCE = 0.95
BATCHES = 16
"""Of ``batch_means``: 10 to 20 are usual."""
TRIM = 0.2
"""``trimmed``: the mean without this share of the values at each end (at least one from five on).
A pair of rounds in which the machine paused says nothing about either engine; a plain mean of eight
pairs moves by an eighth of such a pause, and its interval with it."""
SMALLEST_SAMPLE = 5
"""Fewer rounds get no interval. The resampled values never leave the range of the sample, and the
range of n values covers the median with probability 1 − 2^(1−n): 87.5 % at n = 4, 93.8 % at 5."""


@dataclass(frozen=True)
class Distribution:
    """Summary of all samples, in the samples' unit. Quantiles interpolate linearly."""

    count: int
    mean: float
    std: float
    """Of the sample (n − 1); 0 for a single value."""
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Estimate:
    """A statistic over rounds with its interval; ``Unavailable`` says why one is missing."""

    value: Maybe
    low: Maybe
    high: Maybe
    samples: tuple[float, ...] = ()
    """What it was computed from: one value a round."""
    statistic: Statistic = "median"

    @staticmethod
    def missing(reason: str) -> Estimate:
        why = Unavailable(reason)
        return Estimate(why, why, why)


def distribution(samples: npt.ArrayLike) -> Distribution:
    """Summary of at least one sample.

    Raises:
        ValueError: no samples.
    """
    values = np.asarray(samples, dtype=np.float64)
    if not values.size:
        raise ValueError("a distribution needs at least one sample")
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
    return Distribution(
        count=int(values.size),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        min=float(values.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
    )


def estimate(samples: Sequence[float], statistic: Statistic = "median") -> Estimate:
    """The statistic of the samples (at least one) and its 95 % interval."""
    values = tuple(float(s) for s in samples)
    value = float(_statistic(np.array([values]), statistic)[0])
    bounds = interval(values, statistic)
    low, high = (bounds, bounds) if isinstance(bounds, Unavailable) else bounds
    return Estimate(value, low, high, values, statistic)


def batch_means(samples: Sequence[float]) -> tuple[float, ...]:
    """Trimmed means of ``BATCHES`` runs of neighbours, where there are at least two for each.

    What disturbs a machine lasts for several rounds, so neighbours are alike and an interval that
    takes them for independent is too narrow; batches that outlast the disturbance are not (the
    method of batch means, Law, "Simulation Modeling and Analysis", section 9.5.3).
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2 * BATCHES:
        return tuple(values.tolist())
    parts = np.array_split(values, BATCHES)
    return tuple(float(_statistic(part[np.newaxis], "trimmed")[0]) for part in parts)


def trimmed_mean(values: Sequence[float]) -> float:
    """Mean without ``TRIM`` of the values at each end."""
    return float(_statistic(np.asarray([values], dtype=np.float64), "trimmed")[0])


@lru_cache(maxsize=512)  # the live view asks again for every engine when one round ends
def interval(
    samples: tuple[float, ...], statistic: Statistic = "median"
) -> tuple[float, float] | Unavailable:
    """Bootstrap interval at ``CONFIDENCE``, by expanded percentiles."""
    if len(samples) < SMALLEST_SAMPLE:
        return Unavailable(_too_few(len(samples)))
    resampled = _resample(samples, statistic, np.random.default_rng(SEED))
    return _bounds(resampled, expanded_tail(len(samples)))


@lru_cache(maxsize=128)
def ratio_interval(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float] | Unavailable:
    """Interval of median(b) / median(a) for unpaired samples, each resampled by itself.

    The percentiles are expanded for the smaller sample, which errs to the wide side.
    """
    fewest = min(len(a), len(b))
    if fewest < SMALLEST_SAMPLE:
        return Unavailable(_too_few(fewest))
    random = np.random.default_rng(SEED)
    ratios = _resample(b, "median", random) / _resample(a, "median", random)
    return _bounds(ratios, expanded_tail(fewest))


def expanded_tail(n: int, confidence: float = CONFIDENCE) -> float:
    """Tail probability Φ(−√(n/(n−1)) · t_{α/2, n−1}) that replaces α/2 in a percentile interval.

    A plain percentile interval is too narrow by √((n−1)/n) and uses normal instead of t quantiles.
    Hesterberg (2015), "What Teachers Should Know About the Bootstrap", The American Statistician
    69(4), on expanded percentile intervals.
    """
    t = student_t_quantile((1 + confidence) / 2, n - 1)
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)


def _resample(
    samples: tuple[float, ...], statistic: Statistic, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The statistic of ``RESAMPLES`` draws with replacement."""
    values = np.asarray(samples, dtype=np.float64)
    draws = values[random.integers(0, len(values), size=(RESAMPLES, len(values)))]
    return _statistic(draws, statistic)


def _statistic(draws: npt.NDArray[np.float64], statistic: Statistic) -> npt.NDArray[np.float64]:
    """The statistic of every row."""
    if statistic == "median":
        return np.asarray(np.median(draws, axis=1), dtype=np.float64)
    if statistic == "trimmed":
        off = int(TRIM * draws.shape[1])
        draws = np.sort(draws, axis=1)[:, off : draws.shape[1] - off]
    return np.asarray(draws.mean(axis=1), dtype=np.float64)


def _bounds(resampled: npt.NDArray[np.float64], tail: float) -> tuple[float, float]:
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    return low, high


def _too_few(n: int) -> str:
    rounds = "1 round" if n == 1 else f"{n} rounds"
    return f"{rounds}: an interval needs at least {SMALLEST_SAMPLE}"
