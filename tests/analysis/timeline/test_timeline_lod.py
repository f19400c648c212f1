"""Levels of detail and axes: exact at every zoom, checked against counting every nanosecond."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprof.analysis.device.sweep import Work
from llmprof.analysis.timeline.axis import Lane, RunLanes, Series, StepAxis, Track
from llmprof.analysis.timeline.lod import AT_END, Curve, LaneWork
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import ApiRows

FIXTURE = Path(__file__).parents[2] / "fixtures" / "h100_graph.sqlite"

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12), st.integers(0, 2)), max_size=30)


def work_of(items: list[tuple[int, int, int]]) -> LaneWork:
    """Kernels of three names on streams 1 to 3, from (start, length, name)."""
    start, length, label = (np.array(c, np.int64) for c in zip(*items, strict=True))
    count = len(items)
    work = Work(
        start_ns=start,
        end_ns=start + length,
        label=label,
        step=np.ones(count, np.int64),
        is_kernel=np.ones(count, bool),
        kernel_row=np.arange(count),
        copy_row=np.empty(0, np.int64),
        device=np.zeros(count, np.int64),
        whole_graph=np.zeros(count, bool),
        names=("void a()", "void b()", "void c()"),
    )
    return LaneWork(work, {0: "attention", 1: "norm", 2: "norm"}, label + 1)


def covered(items: list[tuple[int, int, int]]) -> np.ndarray:
    busy = np.zeros(100, bool)
    for start, length, _ in items:
        busy[start : start + length] = True
    return busy


@given(pieces.filter(bool), st.lists(st.integers(0, 99), min_size=2, max_size=8))
def test_curves_hold_every_busy_nanosecond_once(items, edges) -> None:
    work = work_of(items)
    borders = np.array(sorted(edges), np.int64)
    busy = covered(items)
    truth = [int(busy[a:b].sum()) for a, b in pairwise(borders)]
    assert work.busy.between(borders).tolist() == truth
    none = np.zeros(len(borders) - 1, np.int64)
    shared = sum((curve.between(borders) for curve in work.curves.values()), none)
    assert np.array_equal(shared, work.busy.between(borders))


@given(pieces.filter(bool), st.integers(0, 40), st.integers(1, 50))
def test_gaps_are_what_no_kernel_covers(items, start, length) -> None:
    work = work_of(items)
    busy = covered(items)[start : start + length]
    gaps = work.gaps(1, start, start + length)
    drawn = np.ones(length, bool)
    for gap in gaps:
        assert gap.end_ns > gap.start_ns
        drawn[gap.start_ns - start : gap.end_ns - start] = False
        if gap.after != AT_END:
            assert work.covered_ns[gap.after] == gap.start_ns
        if gap.before != AT_END:
            assert work.start_ns[gap.before] >= gap.end_ns
    assert np.array_equal(drawn, busy)


@given(pieces.filter(bool), st.integers(0, 2), st.integers(0, 29), st.sampled_from([1, -1]))
def test_search_finds_the_nearest_and_wraps(items, label, item, way) -> None:
    work = work_of(items)
    item = min(item, len(work) - 1)
    found = work.next_of(np.array([label]), item, way)
    order = [(item + way * n) % len(work) for n in range(1, len(work) + 1)]
    assert found == next((i for i in order if work.label[i] == label), None)


def test_a_stream_shows_what_another_hides() -> None:
    work = work_of([(0, 10, 0), (2, 4, 1)])
    edges = np.array([0, 10])
    assert {n: c.between(edges)[0] for n, c in work.curves.items()} == {"attention": 10}
    assert work.streams == (1, 2)
    assert work.stream_curves(2)["norm"].between(edges)[0] == 4


def test_series_give_means_and_nothing_where_nothing_is_known() -> None:
    start, end = np.array([0, 10, 40]), np.array([10, 20, 50])
    series = Series.of("x", "u", start, end, np.array([1.0, 3.0, 5.0]))
    means = series.means(np.array([0, 20, 30, 50]))
    assert means[0] == 2.0 and np.isnan(means[1]) and means[2] == 5.0
    assert (series.at(12), series.at(30), series.at(-1)) == (3.0, None, None)


def lane(label: str, bounds: list[int]) -> Lane:
    track = Track(("traced", 0), np.array(bounds, np.int64), float(np.median(np.diff(bounds)[1:])))
    none = np.empty(0, np.int64)
    return Lane(
        label, (track,), Unavailable("none"), ApiRows(), Curve.of(none, none), ("traced", 0)
    )


def test_steps_of_all_lanes_begin_at_the_same_place() -> None:
    lanes = [lane("a", [1000, 1010, 1030, 1040]), lane("b", [5, 25, 30, 60])]
    axis = RunLanes(lanes).axis("step")
    assert isinstance(axis, StepAxis)
    assert axis.slots.tolist() == [0, 20, 40, 70] and axis.home == (20, 70)
    for index, bounds in enumerate(([1000, 1010, 1030], [5, 25, 30])):
        assert axis.positions(index, np.array(bounds)).tolist() == [0, 20, 40]
    # Behind the end of a step a lane stands still until the others are done.
    assert axis.times(1, np.array([20, 25, 39, 40])).tolist() == [25, 30, 30, 30]
    assert axis.place(0, 1030, 1040) == (40, 50)


@given(st.lists(st.integers(0, 70), min_size=2, max_size=20))
def test_a_lane_never_runs_backwards(positions) -> None:
    lanes = [lane("a", [1000, 1010, 1030, 1040]), lane("b", [5, 25, 30, 60])]
    axis = RunLanes(lanes).axis("step")
    assert axis is not None
    for index in (0, 1):
        times = axis.times(index, np.array(sorted(positions)))
        assert np.all(np.diff(times) >= 0)


@pytest.fixture(scope="module")
def trace() -> RunTrace:
    with RunFileReader(FIXTURE) as reader:
        return RunTrace(FIXTURE, reader.run_data())


def test_a_recorded_run_agrees_with_its_reports(trace: RunTrace) -> None:
    for engine, found in zip(trace.engines, trace.lanes.lanes, strict=True):
        track, work = found.traced, found.work
        assert track is not None and isinstance(work, LaneWork)
        gaps, report = engine.gaps, engine.kernels
        assert not isinstance(gaps, Unavailable) and not isinstance(report, Unavailable)
        for step in range(1, track.steps + 1):
            bounds = [int(t) for t in track.bounds_ns[step : step + 2]]
            idle = sum(g.end_ns - g.start_ns for g in work.gaps(step, *bounds))
            assert idle == gaps.step_idle_ns[step - 1]
        decode = track.bounds_ns[[1, -1]]
        totals = {name: int(c.between(decode)[0]) for name, c in work.curves.items()}
        assert {c.category: c.total_ns for c in report.categories} == {
            name: ns for name, ns in totals.items() if ns
        }


def test_a_recorded_run_has_clocks_power_and_measured_bandwidth(trace: RunTrace) -> None:
    for found in trace.lanes.lanes:
        assert {s.name for s in found.series} == {"SM clock", "power"}
        assert [name for name, *_ in found.step_series] == ["DRAM"]
        dram = found.samples[("sampled", 0)][0]
        assert dram.unit == "GB/s" and 500 < float(np.median(dram.value)) < 3352


def test_distribution_of_a_kernel(trace: RunTrace) -> None:
    work = trace.lanes.lanes[0].work
    assert isinstance(work, LaneWork)
    spread = work.spread(int(work.label[100]))
    counts, low, high = spread.histogram(24)
    assert counts.sum() == len(spread.sorted_ns) and low <= spread.quantile(0.5) <= high
    assert spread.rank(spread.quantile(1.0)) == 1.0


def test_the_slowest_step_is_the_first_of_those_that_are_steps() -> None:
    """A pause is longer than any step, and none."""
    bounds = np.cumsum([0, 0, 10, 500, 30, 20], dtype=np.int64)
    track = Track(("traced", 0), bounds, 20.0, ("graph", "pause", "graph", "graph"))
    assert track.slowest_first() == [3, 4, 1]
    assert [track.rank(step) for step in (1, 2, 3, 4)] == [(3, 3), None, (1, 3), (2, 3)]
    alone = Track(("traced", 0), bounds, 20.0)
    assert [alone.rank(step)[0] for step in alone.slowest_first()] == [1, 2, 3, 4]
