"""DRAM bandwidth of kernels from samples longer than they are, against planted profiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dram_factory import (
    EVEN,
    LAYER,
    NORM,
    READ_FIRST,
    SHORT,
    SPIN_FIRST,
    Planted,
    Strobe,
    dram_run,
    strobe,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.analysis.bandwidth import rounds
from llmprof.analysis.bandwidth.fit.design import Activity, Cuts, equations, shares
from llmprof.analysis.bandwidth.fit.grouping import grouped
from llmprof.analysis.bandwidth.fit.kernel_fit import KernelFit, Samples, fit, without_overfull
from llmprof.analysis.bandwidth.fit.nonnegative import solve
from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram, kernel_bandwidth
from llmprof.analysis.device.naming.categories import shipped_rules
from llmprof.records import LOST_RECORDS, Missing, Unavailable
from llmprof.runfile.reader import RunFileReader


@pytest.fixture(scope="module")
def made() -> Strobe:
    return strobe()


def fitted(made: Strobe, samples: Samples | None = None) -> KernelFit:
    found = fit(made.activity, made.samples if samples is None else samples)
    assert isinstance(found, KernelFit), found
    return found


def mean_of(found: KernelFit, made: Strobe, kind: Planted) -> float:
    number = made.kinds.index(kind)
    unit = next(u for u in found.units if number in u.groups)
    assert unit.groups == (number,)
    assert unit.dram_pct is not None
    return unit.dram_pct


def test_planted_profiles_come_back(made: Strobe) -> None:
    found = fitted(made)
    for kind in (READ_FIRST, SPIN_FIRST, EVEN):
        assert mean_of(found, made, kind) == pytest.approx(kind.mean_pct, rel=0.01), kind.name
    for kind in (SHORT, NORM):
        assert mean_of(found, made, kind) < 4
    profile = {made.kinds[u.groups[0]]: u.profile_pct for u in found.units}
    early, late = np.array_split(np.array(profile[READ_FIRST]), 2)
    assert early[:-1].mean() > 70
    assert late[1:].mean() < 3
    assert np.mean(profile[SPIN_FIRST][: len(profile[SPIN_FIRST]) // 2]) < 3
    assert found.r2 > 0.99
    assert found.fitted_pct == pytest.approx(found.sampled_pct, rel=0.01)


def test_intervals_hold_the_truth(made: Strobe) -> None:
    found = fitted(made)
    for unit in found.units:
        kind = made.kinds[unit.groups[0]]
        assert unit.low_pct is not None
        assert unit.high_pct is not None
        assert unit.low_pct - 0.5 <= kind.mean_pct <= unit.high_pct + 0.5, kind.name


@pytest.mark.parametrize(
    ("offset", "drift"), [(1_200_000, 0), (-11_900_000, 0), (0, 60_000), (300_000, -90_000)]
)
def test_clock_is_found(offset: int, drift: int) -> None:
    made = strobe(offset_ns=offset, drift_ns=drift)
    found = fitted(made)
    step = float(np.median(np.diff(made.stamps)))
    # A whole step more or less is as good.
    off = (found.offset_ns - offset - drift / 2 + step / 2) % step - step / 2
    assert abs(off) < max(12_000, abs(drift) / 3)
    for kind in (READ_FIRST, SPIN_FIRST, EVEN):
        assert mean_of(found, made, kind) == pytest.approx(kind.mean_pct, rel=0.03), kind.name


def test_clock_that_cannot_be_brought_right_is_refused(made: Strobe) -> None:
    samples = made.samples
    random = np.random.default_rng(1).permutation(samples.dram_pct)
    wrong = Samples(samples.start_ns, samples.end_ns, random, samples.round, samples.others)
    found = fit(made.activity, wrong)
    assert isinstance(found, Unavailable)
    assert "do not follow the kernels" in found.reason


def test_one_value_a_kernel_is_refused_where_it_is_wrong(made: Strobe) -> None:
    found = fit(made.activity, made.samples, None, (float("inf"),))
    assert isinstance(found, Unavailable)
    assert "structure at the kernels' borders" in found.reason


def test_too_few_samples() -> None:
    made = strobe(steps=10)
    found = fit(made.activity, made.samples)
    assert isinstance(found, Unavailable)
    assert "record more steps" in found.reason


@pytest.mark.parametrize("border_ns", [0, 200])
def test_intervals_hold_the_truth_in_nine_of_ten_recordings(border_ns: int) -> None:
    """Also where a kernel's recorded begin and end are off from its traffic, alike each time."""
    hits = []
    for seed in range(6):
        made = strobe(seed=seed, steps=100)
        rng = np.random.default_rng(seed)
        off = rng.uniform(-border_ns, border_ns, (2, len(made.kinds))).astype(int)[:, made.kind]
        found = fitted(replace(made, start=made.start + off[0], end=made.end + off[1]))
        for unit in found.units:
            kind = made.kinds[unit.groups[0]]
            assert unit.low_pct is not None
            assert unit.high_pct is not None
            assert kind.length_ns < 5000 or unit.high_pct - unit.low_pct < 8
            # Bytes: the recorded duration is not the true one.
            scale = found.median_ns[unit.groups[0]] / kind.length_ns
            hits.append(unit.low_pct * scale <= kind.mean_pct <= unit.high_pct * scale)
    assert np.mean(hits) >= 0.9


@pytest.fixture(scope="module")
def near_the_peak() -> tuple[Strobe, KernelFit]:
    """As the planted kernels on a GPU: they read at 92 % of the peak, rounded off at their ends."""
    names = ("nothing(float*)", "even(float*)", "read_then_spin(float*)", "spin_then_read(float*)")
    read = (46,) * 2 + (92,) * 30
    nothing = Planted(names[0], 2_600, (0,))
    made = strobe(
        (
            nothing,
            Planted(names[1], 17_600, (46,) * 2 + (92,) * 93 + (0,) * 5, (264, 1, 1)),
            nothing,
            Planted(names[2], 36_000, read + (0,) * 68, (264, 1, 1)),
            nothing,
            Planted(names[3], 25_300, (0,) * 65 + (46,) * 2 + (92,) * 33, (264, 1, 1)),
        ),
        layers=8, steps=900, jitter=0.003, noise_pct=0.03,
    )  # fmt: skip
    return made, fitted(made)


def test_profiles_of_kernels_that_read_near_the_peak(
    near_the_peak: tuple[Strobe, KernelFit],
) -> None:
    """A part that comes out above the peak takes its neighbours in; the profile stays."""
    made, found = near_the_peak
    profiles = {made.kinds[u.groups[0]].name.partition("(")[0]: u for u in found.units}
    assert len(profiles["even"].profile_pct) >= 3
    for unit in found.units:
        assert max(unit.profile_pct) <= 100
    late = np.array(profiles["read_then_spin"].profile_pct)
    assert len(late) >= 6
    assert late[-int(len(late) * 0.6) :].sum() < 0.03 * late.sum()
    early = np.array(profiles["spin_then_read"].profile_pct)
    assert len(early) >= 4
    assert early[: int(len(early) * 0.6)].sum() < 0.03 * early.sum()


@pytest.mark.parametrize("parts", [(90.0, 104.0, 84.0, 20.0), (101.0, 95.0, 3.0), (100.5,) * 4])
def test_longer_parts_keep_the_bytes(
    near_the_peak: tuple[Strobe, KernelFit], parts: tuple[float, ...]
) -> None:
    _, found = near_the_peak
    unit = replace(found.units[0], profile_pct=parts)
    (made,) = without_overfull(replace(found, units=(unit,))).units
    if made.profile_pct:
        assert 2 <= len(made.profile_pct) < len(parts)
        assert max(made.profile_pct) <= 100
        assert np.mean(made.profile_pct) == pytest.approx(np.mean(parts))
        assert "told apart down to" in made.note
    else:
        assert min(parts) > 100
        assert "not told apart" in made.note


def test_kernels_under_the_same_samples_are_one() -> None:
    # Two kernels that follow each other at once, with samples of three times their length.
    a = Planted("a()", 1_000, (40,))
    b = Planted("b()", 1_000, (80,), (2, 1, 1))
    made = strobe((NORM, EVEN, a, b), layers=6, steps=200, noise_pct=1.5, interval_ns=50_000)
    found = fit(made.activity, made.samples)
    assert isinstance(found, KernelFit), found
    numbers = {made.kinds.index(a), made.kinds.index(b)}
    units = [u for u in found.units if numbers & set(u.groups)]
    for unit in units:
        if len(unit.groups) > 1:
            assert "same samples" in unit.note
            assert unit.profile_pct == ()
        elif unit.dram_pct is None:
            assert "too few samples" in unit.note
        else:  # told apart, then rightly so
            truth = made.kinds[unit.groups[0]].mean_pct
            assert unit.low_pct is not None
            assert unit.high_pct is not None
            assert unit.low_pct - 8 <= truth <= unit.high_pct + 8


def test_one_name_with_different_work_is_split_by_what_runs_before() -> None:
    small = Planted("gemv(float*)", 9_000, (40,), (256, 1, 1))
    large = Planted("gemv(float*)", 24_000, (70,), (256, 1, 1))
    made = strobe((NORM, small, SHORT, large), layers=14, steps=200)
    key = np.where(made.kind == made.kinds.index(large), made.kinds.index(small), made.kind)
    groups = grouped(key, made.start, made.end)
    assert len(groups.base) > len(np.unique(key))
    found = fit(
        Activity(made.start, made.end, groups.group, len(groups.base)),
        made.samples,
        groups.parent,
    )
    assert isinstance(found, KernelFit), found
    means = sorted(
        u.dram_pct
        for u in found.units
        if u.dram_pct is not None and found.median_ns[u.groups[0]] > 5000
    )
    assert means == pytest.approx([40, 70], rel=0.03)


def test_same_work_in_several_places_stays_one() -> None:
    gemv = Planted("gemv(float*)", 15_000, (50,), (256, 1, 1))
    made = strobe((NORM, gemv, SHORT, gemv), layers=14, steps=250)
    groups = grouped(made.kind, made.start, made.end)
    found = fit(
        Activity(made.start, made.end, groups.group, len(groups.base)),
        made.samples,
        groups.parent,
    )
    assert isinstance(found, KernelFit), found
    assert len(found.units) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 30))
def test_nonnegative_solution_meets_the_optimality_conditions(
    seed: int, columns: int, rows: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (rows, columns))
    y = x @ rng.normal(0.3, 1, columns) + rng.normal(0, 0.1, rows)
    value, _ = solve(x.T @ x, x.T @ y)
    slope = x.T @ (x @ value - y)
    scale = max(1.0, float(np.abs(x.T @ y).max()))
    assert (value >= 0).all()
    assert (slope > -1e-4 * scale).all()
    assert abs(float(slope @ value)) < 1e-3 * scale * max(1.0, float(value.max()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_shares_of_a_sample_add_up(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, 60)
    length = rng.integers(1, 500, 3)[group]  # of equal length within a group
    start = np.cumsum(rng.integers(0, 200, 60) + np.concatenate(([0], length[:-1])))
    activity = Activity(start, start + length, group, 3)
    cut = Cuts.of([np.linspace(0, 1, parts + 1)] * 3)
    edges = np.arange(-100, int(start[-1]) + 900, 137)
    x = shares(activity, activity.end_ns, cut, edges[:-1], edges[1:])
    np.testing.assert_allclose(x.sum(1), 1, atol=1e-9)
    assert x.min() > -1e-12
    np.testing.assert_allclose(x[:, :-1].sum() * 137, length.sum(), rtol=1e-9)
    value = rng.uniform(0, 100, len(x))
    block = np.arange(len(x)) % 4
    found = equations(activity, cut, edges[:-1], edges[1:], value, block)
    np.testing.assert_allclose(found.xx.sum(0), x.T @ x, atol=1e-9)
    np.testing.assert_allclose(found.xy.sum(0), value @ x, atol=1e-9)
    one = found.merged(np.array([*([0] * parts), *([1] * parts), *([2] * parts), 3]), 4)
    joined = np.stack([x[:, g * parts : (g + 1) * parts].sum(1) for g in range(3)] + [x[:, -1]], 1)
    np.testing.assert_allclose(one.xx.sum(0), joined.T @ joined, atol=1e-9)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.sqlite"
    dram_run(path, strobe(LAYER, steps=150))
    return path


def read(path: Path) -> KernelBandwidth | Unavailable:
    with RunFileReader(path) as reader:
        data = reader.run_data()
        return kernel_bandwidth(reader, data, data.engines[0], shipped_rules())


def test_a_run_file_gives_bytes_a_launch(run: Path) -> None:
    found = read(run)
    assert isinstance(found, KernelBandwidth), found
    assert found.ceiling_gb_s == 3010.0
    assert found.spec_gb_s == pytest.approx(3352.32)
    assert found.steps == 146
    kernels: dict[str, KernelDram] = {k.short_name: k for k in found.kernels}
    for kind in (READ_FIRST, SPIN_FIRST, EVEN):
        kernel = kernels[kind.name.partition("(")[0]]
        assert kernel.mb_per_launch == pytest.approx(kind.mb, rel=0.015), kind.name
        assert kernel.grid == kind.grid
        assert kernel.launches_per_step == pytest.approx(12, rel=0.01)
        assert not isinstance(kernel.dram_gb_s, Unavailable)
        assert kernel.of_ceiling == pytest.approx(kernel.dram_gb_s / 3010)
        percent = kernel.dram_gb_s / found.spec_gb_s * 100
        assert kernel.further_pct["dram_read_pct"] == pytest.approx(0.9 * percent, rel=0.03)
        assert kernel.further_pct["dram_write_pct"] == pytest.approx(0.1 * percent, rel=0.03)
    assert found.counters["dram_write_pct"] == ""
    assert found.counters["tensor_pct"] == "not counted"
    assert sum(k.share for k in found.kernels) <= 1


def test_without_the_copy_the_ceiling_is_told_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    dram_run(path, strobe(steps=100), copy_gb_s=None)
    found = read(path)
    assert isinstance(found, KernelBandwidth), found
    assert isinstance(found.ceiling_gb_s, Unavailable)
    assert isinstance(found.kernels[0].of_ceiling, Unavailable)
    assert isinstance(found.headroom, Unavailable)


def test_of_too_many_kernels_only_their_samples_count(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels behind the limit are not read: their samples would make others look faster."""
    whole = read(run)
    monkeypatch.setattr(rounds, "MAX_KERNELS", 6000)
    found = read(run)
    assert isinstance(whole, KernelBandwidth)
    assert isinstance(found, KernelBandwidth), found
    assert found.samples < 0.7 * whole.samples
    kernels = {k.short_name: k for k in found.kernels}
    for kind in (READ_FIRST, SPIN_FIRST, EVEN):
        kernel = kernels[kind.name.partition("(")[0]]
        assert kernel.mb_per_launch == pytest.approx(kind.mb, rel=0.03), kind.name


def test_lost_records_of_kernels_are_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    lost = Missing("torch", LOST_RECORDS, "CUPTI dropped 12 records")
    dram_run(path, strobe(steps=100), then=lambda writer, engine: writer.put_missing([lost]))
    found = read(path)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("kernels are missing in the trace")
    assert "dropped 12 records" in found.reason
