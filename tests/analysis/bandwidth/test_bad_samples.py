"""Kernels or samples that are missing, and traffic of others: right numbers or a reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dram_factory import EVEN, READ_FIRST, SPIN_FIRST, Strobe, strobe

from llmprof.analysis.bandwidth.fit.design import Activity
from llmprof.analysis.bandwidth.fit.kernel_fit import KernelFit, Samples, fit
from llmprof.records import Unavailable

LONG = (READ_FIRST, SPIN_FIRST, EVEN)


@pytest.fixture(scope="module")
def made() -> Strobe:
    return strobe(steps=200)


def some(samples: Samples, keep: np.ndarray) -> Samples:
    return Samples(
        samples.start_ns[keep], samples.end_ns[keep], samples.dram_pct[keep],
        samples.round[keep], samples.others[keep],
    )  # fmt: skip


@pytest.mark.parametrize("lost", ["0.05 % in a row", "1 % in a row", "10 % in a row", "every 500th",
                                  "every 100th", "every 10th", "one kernel"])  # fmt: skip
def test_lost_kernel_records_give_a_reason_or_an_interval_that_holds(
    made: Strobe, lost: str
) -> None:
    activity, number = made.activity, np.arange(len(made.start))
    count, middle = len(number), len(number) // 2
    keep = {
        "0.05 % in a row": abs(number - middle) > 0.00025 * count,
        "1 % in a row": abs(number - middle) > 0.005 * count,
        "10 % in a row": abs(number - middle) > 0.05 * count,
        # A prime stride: of a layer of six kernels each is met.
        "every 500th": number % 499 > 0,
        "every 100th": number % 101 > 0,
        "every 10th": number % 11 > 0,
        "one kernel": activity.group != made.kinds.index(READ_FIRST),
    }[lost]
    rest = Activity(
        activity.start_ns[keep], activity.end_ns[keep], activity.group[keep], activity.groups
    )
    found = fit(rest, made.samples)
    if isinstance(found, Unavailable):
        assert found.reason
        return
    for unit in found.units:
        kind = made.kinds[unit.groups[0]]
        if unit.low_pct is not None and unit.high_pct is not None and kind in LONG:
            assert unit.low_pct <= kind.mean_pct <= unit.high_pct, kind.name


@pytest.mark.parametrize("lost", ["at random", "a gap", "the end"])
def test_lost_samples_leave_the_numbers_right(made: Strobe, lost: str) -> None:
    number = np.arange(len(made.samples.dram_pct))
    keep = {
        "at random": np.random.default_rng(0).random(len(number)) > 0.3,
        "a gap": abs(number - 900) > 150,
        "the end": number < 0.7 * len(number),
    }[lost]
    found = fit(made.activity, some(made.samples, keep))
    assert isinstance(found, KernelFit), found
    assert found.samples == keep.sum()
    for unit in found.units:
        kind = made.kinds[unit.groups[0]]
        if kind in LONG:
            assert unit.dram_pct == pytest.approx(kind.mean_pct, rel=0.02), kind.name


@pytest.mark.parametrize("percent", [3.0, 20.0])
def test_traffic_of_another_process_is_a_reason(made: Strobe, percent: float) -> None:
    """Counters are the GPU's: what others move all the time is there while no kernel runs too."""
    samples = replace(made.samples, dram_pct=made.samples.dram_pct + percent)
    found = fit(made.activity, samples)
    assert isinstance(found, Unavailable)
    assert "other work was on the GPU" in found.reason


def test_a_round_that_is_too_short_says_what_to_do(made: Strobe) -> None:
    found = fit(made.activity, some(made.samples, np.arange(len(made.samples.dram_pct)) < 400))
    assert isinstance(found, Unavailable)
    assert found.reason == "400 samples while kernels ran, 500 are needed: record more steps"
