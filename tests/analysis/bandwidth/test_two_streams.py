"""Kernels that run at the same time: told apart by launches that ran alone, else one group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from dram_factory import PEAK_GB_S
from dram_streams import (
    FULL,
    LONG,
    NOTHING,
    READ_THEN_SPIN,
    READERS,
    TINY,
    TRICKLE,
    Reader,
    Recording,
    Streams,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.analysis.bandwidth.fit.design import Activity, Cuts
from llmprof.analysis.bandwidth.fit.grouping import grouped
from llmprof.analysis.bandwidth.fit.kernel_fit import KernelFit, fit
from llmprof.analysis.bandwidth.fit.streams import beside_apart, overlapped, shared
from llmprof.analysis.bandwidth.fit.units import SAME_TIME, UNDER_ANOTHER, Unit

Step = Callable[[Streams], None]


def recorded(layer: Step, layers: int = 3500, seed: int = 0) -> Recording:
    streams = Streams(np.random.default_rng(seed))
    for number in range(layers):
        streams.alone(NOTHING)
        streams.alone(FULL)
        streams.alone(NOTHING)
        layer(streams)
        if number % 8 == 7:
            streams.now += streams.rng.integers(20_000, 120_000)
    return streams.measured()


def fitted(made: Recording) -> KernelFit:
    activity = Activity(made.start, made.end, made.groups.group, len(made.groups.base))
    found = fit(activity, made.samples, made.groups.parent)
    assert isinstance(found, KernelFit), found
    return found


def units_of(found: KernelFit, made: Recording, reader: Reader, beside: bool) -> list[Unit]:
    """Units that hold launches of the reader: those of launches beside others, or the rest."""
    numbers = {
        int(found.group[n])
        for n in range(len(made.groups.base))
        if READERS[made.groups.base[n]] is reader and made.groups.beside[n] == beside
    }
    return [u for u in found.units if numbers & set(u.groups)]


def megabytes(found: KernelFit, unit: Unit) -> tuple[float, float, float]:
    """Low, value and high of one launch of each group."""
    assert unit.dram_pct is not None
    assert unit.low_pct is not None
    assert unit.high_pct is not None
    time = sum(found.median_ns[g] for g in unit.groups)
    scale = time / 100 * PEAK_GB_S / 1e6
    return unit.low_pct * scale, unit.dram_pct * scale, unit.high_pct * scale


@pytest.mark.parametrize(("later", "spread"), [(1500, 100), (1500, 1000), (6000, 2000)])
def test_kernels_that_are_never_alone_are_one_with_the_bytes_of_both(
    later: float, spread: float
) -> None:
    """Least squares gives the trickle 2.0 to 3.7 of its 4 MB here, and a narrow interval."""
    made = recorded(
        lambda s: s.beside(READ_THEN_SPIN, TRICKLE, later + spread * s.rng.standard_normal())
    )
    found = fitted(made)
    (unit,) = units_of(found, made, TRICKLE, beside=False)
    assert units_of(found, made, READ_THEN_SPIN, beside=False) == [unit]
    assert len(unit.groups) == 2
    assert unit.note == SAME_TIME
    assert unit.profile_pct == ()
    low, value, high = megabytes(found, unit)
    assert value == pytest.approx(READ_THEN_SPIN.mb + TRICKLE.mb, rel=0.01)
    assert low <= READ_THEN_SPIN.mb + TRICKLE.mb <= high
    (full,) = units_of(found, made, FULL, beside=False)
    assert megabytes(found, full)[1] == pytest.approx(FULL.mb, rel=0.01)
    assert len(full.groups) == 1


@pytest.mark.parametrize("seed", range(2))
def test_launches_that_ran_alone_speak_for_their_kernel(seed: int) -> None:
    def layer(s: Streams) -> None:
        if s.rng.random() < 0.5:
            s.beside(READ_THEN_SPIN, TRICKLE, 1500 + 300 * s.rng.standard_normal())
        else:
            s.alone(TRICKLE)
            s.alone(NOTHING)
            s.alone(READ_THEN_SPIN)

    made = recorded(layer, seed=seed)
    found = fitted(made)
    for reader in (TRICKLE, READ_THEN_SPIN):
        (unit,) = units_of(found, made, reader, beside=False)
        assert len(unit.groups) == 1
        low, value, high = megabytes(found, unit)
        assert value == pytest.approx(reader.mb, rel=0.015 if reader.mb > 10 else 0.03)
        assert low <= reader.mb <= high
    (both,) = units_of(found, made, TRICKLE, beside=True)
    assert both.note == SAME_TIME
    assert megabytes(found, both)[1] == pytest.approx(20.0, rel=0.015)
    (alone,) = units_of(found, made, READ_THEN_SPIN, beside=False)
    profile = np.array(alone.profile_pct)
    assert profile[len(profile) // 3 :].sum() < 0.02 * profile.sum()


def test_a_short_kernel_under_a_long_one_has_no_value_and_takes_none_away() -> None:
    made = recorded(lambda s: s.beside(LONG, TINY, 8000), 2000)
    found = fitted(made)
    (tiny,) = units_of(found, made, TINY, beside=False)
    assert tiny.dram_pct is None
    assert tiny.note == UNDER_ANOTHER
    (long,) = units_of(found, made, LONG, beside=False)
    assert long.groups != tiny.groups
    low, value, high = megabytes(found, long)
    assert value == pytest.approx(LONG.mb, rel=0.03)
    assert low <= LONG.mb <= high


def test_what_begins_as_the_last_one_ends_is_not_beside_it() -> None:
    """Ends of kernels and begins of the next overlap by some 100 ns in every trace."""

    def layer(s: Streams) -> None:
        s.alone(READ_THEN_SPIN)
        s.now -= 1400
        s.alone(TRICKLE)

    made = recorded(layer, 2000)
    assert not any(made.groups.beside)
    found = fitted(made)
    for reader in (READ_THEN_SPIN, TRICKLE):
        (unit,) = units_of(found, made, reader, beside=False)
        assert len(unit.groups) == 1, reader.name
        low, value, high = megabytes(found, unit)
        assert value == pytest.approx(reader.mb, rel=0.03)
        assert low <= reader.mb <= high


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_time_beside_others(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    start = np.sort(rng.integers(0, 300, count))
    end = start + rng.integers(1, 120, count)
    group = rng.integers(0, 3, count)
    running = np.zeros((count, 500), bool)
    for i in range(count):
        running[i, start[i] : end[i]] = True
    several = running.sum(0) > 1
    assert overlapped(start, end).tolist() == (running & several).sum(1).tolist()
    found = shared(
        Activity(start, end, group, 3), Cuts.of([np.array([0.0, 1.0])] * 3), np.full(4, 7.0)
    )
    for a in range(3):
        for b in range(3):
            at = running[group == a].any(0) & running[group == b].any(0) & several
            assert found.together_ns[a, b] == at.sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_groups_keep_their_kernels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    key = rng.integers(0, 4, 2000)
    start = np.cumsum(rng.integers(500, 3000, 2000))
    end = start + rng.integers(1000, 4000, 2000)
    apart = beside_apart(key, start, end)
    assert (apart % 4 == key).all()
    groups = grouped(key, start, end)
    assert (groups.base[groups.group] == key).all()
    assert (groups.base[groups.parent] == groups.base).all()
    beside = np.array(groups.beside)
    assert (beside[groups.parent] == beside).all()
    assert (beside[groups.group] == (apart >= 4)).all()
