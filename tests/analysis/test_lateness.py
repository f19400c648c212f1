"""Is a rank late: how often balanced groups are called late, and what is always found."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmprof.analysis.ranks.lateness import LEVEL, Lateness, lateness, margin_ns
from llmprof.runfile.trace.rows import Ints

RANKS, STEPS, COLLECTIVES = 8, 48, 65
STEP_NS = 6_000_000
GROUPS = 400


def group(
    random: np.random.Generator,
    ranks: int = RANKS,
    steps: int = STEPS,
    bias_ns: dict[int, float] | None = None,
    memory: float = 0.5,
) -> Ints:
    """How long the others waited for each rank, (ranks, steps), from starts with jitter as hosts
    and GPUs have it: a skewed one of the host a step (median 8 µs, one in a hundred above 60),
    which resembles that of the step before; 0.4 µs each collective; a host put aside for 0.2 to
    2 ms in one step of a hundred.

    Args:
        bias_ns: rank → by how much its host is later in every step.
        memory: correlation of the host's jitter with the step before.
    """
    drawn = random.standard_normal((ranks, steps))
    for step in range(1, steps):
        drawn[:, step] = memory * drawn[:, step - 1] + np.sqrt(1 - memory**2) * drawn[:, step]
    host = 8_000 * np.exp(0.9 * drawn)
    aside = random.random((ranks, steps)) < 0.01
    host += aside * random.uniform(2e5, 2e6, (ranks, steps))
    for rank, value in (bias_ns or {}).items():
        host[rank] += value
    start = random.gamma(1.0, 400.0, (ranks, steps, COLLECTIVES))
    start[:, :, 0] += host
    ranked = np.sort(start, 0)
    last = start == ranked[-1]
    return np.rint((last * (ranked[-1] - ranked[-2])).sum(2)).astype(np.int64)


def judged(late: NDArray[np.int64], margin: int | None = None) -> Lateness:
    found = lateness(late, margin_ns(STEP_NS, 0) if margin is None else margin)
    assert found is not None
    return found


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95])
def test_balanced_groups_are_not_called_late(memory: float) -> None:
    random = np.random.default_rng(7)
    for ranks in (2, RANKS):
        found = [judged(group(random, ranks, memory=memory)) for _ in range(GROUPS)]
        assert sum(one.late for one in found) == 0


def test_a_steady_bias_below_the_margin_is_seen_and_is_no_lateness() -> None:
    random = np.random.default_rng(8)
    small = [judged(group(random, bias_ns={3: 0.004 * STEP_NS})) for _ in range(100)]
    assert sum(one.late for one in small) == 0
    assert {one.row for one in small} == {3}


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_the_test_itself_holds_its_level_without_any_margin(ranks: int, memory: float) -> None:
    """Then only chance makes a rank late. (Two ranks whose jitter lasts for a fifth of the trace
    are told apart by the margin alone: see above.)"""
    random = np.random.default_rng(11)
    wrong = sum(judged(group(random, ranks, memory=memory), 0).late for _ in range(GROUPS))
    # At LEVEL 4 of 400 are right; 11 and more have a chance of 0.3 %.
    assert wrong <= 10, f"{wrong} of {GROUPS}"
    assert LEVEL == 0.01


@pytest.mark.parametrize("late", [0, 5])
@pytest.mark.parametrize(("share", "least"), [(0.03, 54), (0.05, 60), (0.17, 60)])
def test_a_planted_rank_is_found(late: int, share: float, least: int) -> None:
    random = np.random.default_rng(3)
    found = [judged(group(random, bias_ns={late: share * STEP_NS})) for _ in range(60)]
    assert all(one.row == late for one in found)
    assert sum(one.late for one in found) >= least


def test_one_slow_step_is_one_step() -> None:
    late = np.zeros((4, 40), np.int64)
    late[2, 7] = 10**12
    assert not judged(late).late
    late[2, :19] = 10**9
    assert not judged(late).late


def test_slow_steps_in_a_row_count_as_few() -> None:
    late = np.zeros((2, 60), np.int64)
    scattered, row = late.copy(), late.copy()
    scattered[1, np.random.default_rng(1).permutation(60)[:46]] = 10**6
    row[1, :46] = 10**6
    assert judged(scattered).late
    assert judged(row).effective < judged(scattered).effective
    assert not judged(row).late


def test_what_clocks_feign_is_no_lateness() -> None:
    late = np.zeros((2, 40), np.int64)
    late[1] = 120_000
    assert judged(late).late
    assert not judged(late, margin_ns(STEP_NS, 130_000)).late


def test_too_few_steps_show_nothing() -> None:
    late = np.zeros((8, 9), np.int64)
    late[1] = 10**6
    found = judged(late)
    assert found.needed == 10
    assert not found.late
    assert judged(np.hstack([late, late[:, :1]])).late
    assert lateness(late[:, :0], 0) is None
    assert lateness(late[:1], 0) is None
