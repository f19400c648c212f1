"""Bandwidth of single steps from samples whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmprof.analysis.bandwidth.pm_steps import (
    align_to_busy,
    misplaced,
    step_activity,
    weighted_means,
)

US = 1000
T0 = 7_000_000_000_000


def test_partly_overlapping_samples_are_weighted() -> None:
    start = T0 + np.arange(0, 1000, 100)
    means, covered = weighted_means(
        [T0 + 50, T0 + 250, T0 + 260], start, start + 100, np.arange(10)
    )
    # 50 of sample 0, 100 of sample 1, 50 of sample 2; then 10 of sample 2.
    np.testing.assert_allclose(means, [(50 * 0 + 100 * 1 + 50 * 2) / 200, 2])
    np.testing.assert_allclose(covered, [200, 10])


def test_gaps_are_not_made_up() -> None:
    means, covered = weighted_means([0, 100, 200, 300], [0, 250], [50, 300], [10.0, 30.0])
    np.testing.assert_allclose(means, [10, np.nan, 30])
    np.testing.assert_allclose(covered, [50, 0, 50])


def test_samples_that_overlap_count_once() -> None:
    means, covered = weighted_means([0, 200], [0, 90], [100, 200], [10.0, 20.0])
    assert covered[0] == 200
    assert means[0] == pytest.approx((90 * 10 + 110 * 20) / 200)


def test_no_samples_or_no_steps() -> None:
    means, covered = weighted_means([0, 1, 2], [], [], [])
    assert np.isnan(means).all()
    assert not covered.any()
    assert len(weighted_means([5], [0], [1], [1.0])[0]) == 0


def round_of(step_us: int, steps: int = 20) -> tuple[np.ndarray, ...]:
    """Stamps, and samples of 200 µs: steps read at 60 % in even steps, 40 % in odd ones."""
    stamps = T0 + np.arange(steps + 1) * step_us * US
    start = T0 - 1000 * US + np.arange(0, (steps * step_us + 2000) * US, 200 * US)
    end = start + 200 * US
    fine = np.arange(start[0], end[-1], US)
    level = np.where((fine - T0) // (step_us * US) % 2 == 0, 60.0, 40.0)
    dram = level.reshape(len(start), 200).mean(axis=1)
    return stamps, start, end, dram


def test_every_step_gets_its_own_bandwidth() -> None:
    stamps, start, end, dram = round_of(3000)
    found = step_activity(stamps, start, end, dram, np.full(len(dram), 90.0), 50 * US, 3352.0)
    assert found.unavailable is None
    np.testing.assert_allclose(found.dram_pct[::2], 60, atol=1e-6)
    np.testing.assert_allclose(found.dram_gb_s[1::2], 0.4 * 3352, rtol=1e-6)
    np.testing.assert_allclose(found.sm_active_pct, 90)
    np.testing.assert_allclose(found.samples, 15)


def test_a_step_with_lost_samples_has_no_value() -> None:
    stamps, start, end, dram = round_of(3000)
    lost = (start >= stamps[4]) & (start < stamps[5])
    kept = [a[~lost] for a in (start, end, dram, dram)]
    found = step_activity(stamps, *kept, 0, None)
    assert np.flatnonzero(np.isnan(found.dram_pct)).tolist() == [4]
    assert np.isnan(found.dram_gb_s).all()  # no peak


@pytest.mark.parametrize(
    ("step_us", "error", "said"),
    [
        (400, 0, "too few PM samples a step: one every 200 µs, a step takes 400 µs"),
        (3000, 3_100 * US, "known to ±3100 µs, a step takes 3000 µs"),
        (3000, None, "could not be put on the run's clock"),
    ],
)
def test_what_cannot_be_told_has_a_reason(step_us: int, error: int | None, said: str) -> None:
    stamps, start, end, dram = round_of(step_us)
    found = step_activity(stamps, start, end, dram, dram, error, 3352.0)
    assert np.isnan(found.dram_pct).all()
    assert found.unavailable is not None
    assert said in found.unavailable.reason


@pytest.mark.parametrize("shift_us", [-650, 0, 333, 900])
def test_alignment_finds_the_shift(shift_us: int) -> None:
    rng = np.random.default_rng(1)
    # 1 to 3 ms of kernels, 0.5 to 1 ms of rest.
    lengths = np.column_stack((rng.integers(1000, 3000, 60), rng.integers(500, 1000, 60))) * US
    edges = T0 + np.concatenate(([0], np.cumsum(lengths.ravel())))
    begin, until = edges[:-1:2], edges[1::2]
    start = np.arange(T0, int(edges[-1]), 200 * US)
    fine = start[:, None] + np.arange(0, 200 * US, 2 * US)
    at = np.searchsorted(begin, fine, "right") - 1
    dram = 70.0 * (fine < until[at]).mean(axis=1)
    moved = start - shift_us * US
    found = align_to_busy(moved, moved + 200 * US, dram, begin, until, 1000 * US)
    assert abs(found.offset_ns - shift_us * US) <= 10 * US
    assert found.score > 0.99


def test_alignment_knows_when_there_is_nothing_to_align() -> None:
    start = np.arange(0, 20_000, 200)
    found = align_to_busy(start, start + 200, np.full(100, 50.0), [0], [20_000], 1000)
    assert found.offset_ns == 0
    assert np.isnan(found.score)
    assert np.isnan(align_to_busy([], [], [], [], [], 10).score)


# --- a clock gone wrong -----------------------------------------------------------------------


def a_round(shift_ns: int = 0, busy_from: int = 0, busy_to: int = 0) -> tuple[Any, ...]:
    """Prefill at 5 ms, 20 steps of 3 ms from 9 ms on; samples of 0.2 ms, 4 ms more on each side."""
    stamps = 9_000_000 + 3_000_000 * np.arange(21)
    edges = np.arange(1_000_000, 73_200_000, 200_000)
    start, end = edges[:-1], edges[1:]
    at = (start + end) // 2
    work = (at > 5_400_000) & (at < 68_900_000)
    work |= (at > busy_from) & (at < busy_to)
    return stamps, 5_000_000, start + shift_ns, end + shift_ns, np.where(work, 90.0, 0.0)


@pytest.mark.parametrize("shift_ms", [0, 1, -1, 2])
def test_a_placement_within_its_error_is_taken(shift_ms: int) -> None:
    assert misplaced(*a_round(shift_ms * 1_000_000), 1_500_000) == ""


@pytest.mark.parametrize("shift_ms", [11.9, -11.9, 5.0])
def test_a_placement_that_contradicts_the_steps_is_refused(shift_ms: float) -> None:
    said = misplaced(*a_round(int(shift_ms * 1e6)), 1_500_000)
    assert "contradict the steps" in said
    apart = float(said.partition("the last work ")[2].split()[0])
    assert apart == pytest.approx(abs(shift_ms), abs=0.25)
    assert ("behind the last step's end" in said) == (shift_ms > 0)


def test_another_programs_work_is_no_contradiction() -> None:
    """Then the round's begin and end are not seen."""
    assert misplaced(*a_round(0, 0, 10**9), 1_500_000) == ""
    assert misplaced(*a_round(11_900_000, 69_000_000, 72_000_000), 1_500_000) == ""


def test_what_cannot_be_told_is_not_refused() -> None:
    stamps, prefill, start, end, active = a_round(11_900_000)
    assert misplaced(stamps, prefill, start, end, active * 0, 0) == ""
    inside = slice(40, 300)  # no idle sample on either side
    assert misplaced(stamps, prefill, start[inside], end[inside], active[inside], 0) == ""
