"""Kernel table, gaps and waterfall against traces whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_factory import ADD, ATTENTION, GEMV, LAYER, NORM, K, Made, make_trace

from llmprof.analysis.device.attribution import attribute
from llmprof.analysis.device.gaps import GapReport, idle_gaps
from llmprof.analysis.device.kernels import KernelReport, TracedRound, kernel_report, prepare
from llmprof.analysis.device.sweep import Timeline
from llmprof.analysis.device.waterfall import (
    StepParts,
    Waterfall,
    apportion,
    step_parts,
    timing_waterfall,
    verdict_words,
    waterfall,
)
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import TraceRows


def ready(made: Made, engine: str = "exllamav2") -> TracedRound:
    return prepare(made.rows, made.record, attribute(made.rows, made.record), engine)


def gaps_of(traced: TracedRound) -> GapReport:
    report = idle_gaps(traced.timeline)
    assert isinstance(report, GapReport)
    return report


def test_busy_idle_and_counts_of_every_step() -> None:
    report = kernel_report(ready(make_trace(4, copy_at=700)))
    assert isinstance(report.steps, tuple) and report.scope == "4 decode steps"
    for step in report.steps:
        assert (step.wall_ns, step.busy_ns, step.idle_ns) == (1000, 520, 480)
        assert (step.kernels, step.copies, step.launches, step.unusual) == (4, 1, 4, False)
    assert report.busy_ms_per_step == pytest.approx(520e-6)
    assert report.kernels_per_step == 4


def test_kernel_table() -> None:
    kernels = (*LAYER, K(600, 100, GEMV, grid=(8, 2, 1)), K(750, 20, GEMV, grid=(8, 2, 1)))
    rows = {k.name: k for k in kernel_report(ready(make_trace(4, kernels, copy_at=900))).kernels}
    gemv = rows[GEMV]
    assert (gemv.short_name, gemv.category) == ("gemm_half_q_half_gptq", "quantised GEMV/GEMM")
    assert (gemv.count, gemv.count_per_step, gemv.total_ns) == (12, 3.0, 4 * 420)
    assert (gemv.mean_ns, gemv.median_ns) == (140.0, 100.0)
    assert (gemv.grid, gemv.block) == ((8, 2, 1), (128, 1, 1))
    assert sum(k.share for k in rows.values()) == pytest.approx(1)
    assert [rows[n].category for n in (ATTENTION, NORM, ADD)] == [
        "attention",
        "norm",
        "activation/elementwise",
    ]
    copy = rows["[memcpy Device-to-Host]"]
    assert (copy.category, copy.grid, copy.count) == ("copy", None, 4)


def test_medians_of_even_counts_lie_between() -> None:
    made = make_trace(1, (K(0, 10), K(20, 40)))
    assert kernel_report(ready(made)).kernels[0].median_ns == 25.0


def test_overlapping_streams_count_once_and_categories_add_up() -> None:
    """The norm runs inside the GEMV, the attention starts inside it and outlasts it."""
    kernels = (K(100, 400, GEMV), K(150, 50, NORM, 8), K(400, 200, ATTENTION, 9))
    report = kernel_report(ready(make_trace(3, kernels)))
    assert isinstance(report.steps, tuple) and {s.busy_ns for s in report.steps} == {500}
    times = {c.category: c.total_ns for c in report.categories}
    assert times == {"quantised GEMV/GEMM": 1200, "attention": 300}
    assert sum(times.values()) == report.busy_ns
    assert sum(k.total_ns for k in report.kernels) == 3 * 650


def test_graph_launches() -> None:
    graph = tuple(replace(k, graph=True) for k in LAYER[:3])
    report = kernel_report(ready(make_trace(4, (*graph, LAYER[3]))))
    assert (report.kernels_per_step, report.launches_per_step) == (4, 2)
    assert {k.name: k.graph_share for k in report.kernels}[ADD] == 0
    assert {k.name: k.graph_share for k in report.kernels}[GEMV] == 1


def test_first_time_work_is_marked() -> None:
    made = make_trace(6)
    first = int(np.flatnonzero(made.kernel_step == 1)[0])
    name = made.rows.kernels.name_id
    name[first] = name[first + 1]  # one kernel of step 1 is another one, the number is the same
    report = kernel_report(ready(made))
    assert isinstance(report.steps, tuple)
    assert [s.unusual for s in report.steps] == [True] + [False] * 5


def test_totals_stay_where_steps_cannot_be_had() -> None:
    made = make_trace(6, (K(0, 500), K(500, 500)), lag_ns=2300, synchronous=False)
    traced = ready(made)
    report = kernel_report(traced)
    assert isinstance(report.steps, Unavailable) and isinstance(
        report.busy_ms_per_step, Unavailable
    )
    assert report.scope == "the whole round" and report.kernels[0].count == 13
    count = report.kernels[0].count_per_step
    assert isinstance(count, Unavailable) and "--trace full" in count.reason
    assert count == report.categories[0].ms_per_step == report.steps
    assert report.busy_ns == 700 + 6 * 1000
    assert isinstance(idle_gaps(traced.timeline), Unavailable)
    assert isinstance(step_parts(traced, "a"), Unavailable)
    assert isinstance(waterfall(step_parts(traced, "a"), PARTS), Unavailable)


def test_an_empty_trace_is_no_crash() -> None:
    made = make_trace(3)
    report = kernel_report(ready(replace(made, rows=TraceRows())))
    assert report.kernels == report.categories == () and report.busy_ns == 0
    assert "no work of process" in report.reason


def test_gaps_say_where_and_why() -> None:
    report = gaps_of(ready(make_trace(4, copy_at=700)))
    assert report.step_idle_ns == (480,) * 4
    first = report.places[0]
    assert (first.kind, first.after, first.before) == ("after-last", "[memcpy Device-to-Host]", "")
    assert (first.count, first.total_ns, first.longest_ns) == (4, 4 * 270, 270)
    second = report.places[1]
    assert (second.kind, second.after) == ("between", "elementwise add")
    by_kind = {k: round(ms * 1e6) for k, ms in report.kind_ms_per_step.items()}
    assert by_kind == {"between": 190, "before-first": 20, "after-last": 270, "whole-step": 0}
    longest = report.longest[0]
    assert (longest.duration_ns, longest.step, longest.kind) == (270, 1, "after-last")


def test_limits_keep_the_totals() -> None:
    traced = ready(make_trace(4))
    cut = idle_gaps(traced.timeline, top_places=1, top_gaps=2)
    assert isinstance(cut, GapReport)
    assert (len(cut.places), len(cut.longest)) == (1, 2)
    assert cut.place_count == 5 and cut.total_ns == gaps_of(traced).total_ns


random_kernels = st.lists(
    st.builds(
        K,
        at=st.integers(0, 900),
        length=st.integers(0, 400),
        name=st.sampled_from([GEMV, NORM, ATTENTION, ADD]),
        stream=st.integers(1, 3),
        graph=st.booleans(),
    ),
    min_size=1,
    max_size=12,
).map(tuple)


@settings(max_examples=60, deadline=None)
@given(kernels=random_kernels, lag=st.integers(0, 3000), copy=st.none() | st.integers(0, 960))
def test_gaps_and_busy_fill_every_step_exactly(
    kernels: tuple[K, ...], lag: int, copy: int | None
) -> None:
    """Any overlap, any lag, by whatever method: integer ns, nothing lost, nothing twice."""
    made = make_trace(5, kernels, lag_ns=lag, synchronous=False, api=True, copy_at=copy)
    traced = ready(made)
    assert isinstance(traced.timeline, Timeline)
    report, gaps = kernel_report(traced), gaps_of(traced)
    assert isinstance(report.steps, tuple)
    assert tuple(s.idle_ns for s in report.steps) == gaps.step_idle_ns
    assert all(s.busy_ns + s.idle_ns == s.wall_ns for s in report.steps)
    assert sum(p.total_ns for p in idle_places(traced)) == gaps.total_ns
    assert sum(c.total_ns for c in report.categories) == report.busy_ns
    assert report.busy_ns == brute_force_busy(made, traced.timeline)


def idle_places(traced: TracedRound) -> tuple[object, ...]:
    report = idle_gaps(traced.timeline, top_places=10_000)
    assert isinstance(report, GapReport)
    return report.places


def brute_force_busy(made: Made, timeline: Timeline) -> int:
    low, high = int(timeline.bounds_ns[0]), int(timeline.bounds_ns[-1])
    busy = np.zeros(high - low, bool)
    for rows in (made.rows.kernels, made.rows.copies):
        for start, end in zip(rows.start_ns.tolist(), rows.end_ns.tolist(), strict=True):
            busy[max(0, start - low) : max(0, end - low)] = True
    return int(busy.sum())


PARTS = StepParts("b", 4, 900, {"idle": 300, "attention": 600})


def test_the_waterfall_adds_up() -> None:
    a = step_parts(ready(make_trace(3)), "one")
    shorter = tuple(replace(k, length=k.length // 3) for k in LAYER)
    b = step_parts(ready(make_trace(7, shorter, step_ns=777)), "two")
    fall = waterfall(a, b)
    assert isinstance(fall, Waterfall) and isinstance(a, StepParts)
    assert sum(a.parts_ns.values()) == a.step_ns == 1000
    assert (fall.a_ns, fall.b_ns, fall.delta_ns) == (1000, 777, -223)
    assert sum(p.delta_ns for p in fall.parts) == fall.delta_ns
    assert (fall.basis, fall.provenance) == ("traced", "measured")
    assert {p.category for p in fall.parts} >= {"idle", "attention", "norm"}

    timed = timing_waterfall(a, b, 950.4, 700.0)
    assert isinstance(timed, Waterfall)
    assert (timed.a_ns, timed.b_ns, timed.provenance) == (950, 700, "modelled")
    assert sum(p.delta_ns for p in timed.parts) == timed.delta_ns == -250
    traced_work = {p.category: p.a_ns for p in fall.parts if p.category != "idle"}
    assert {p.category: p.a_ns for p in timed.parts if p.category != "idle"} == traced_work
    tight = timing_waterfall(a, b, 100.0, 700.0)
    assert isinstance(tight, Waterfall)
    assert (tight.a_ns, sum(p.a_ns for p in tight.parts)) == (100, 100)
    assert "scaled to it" in tight.note
    assert isinstance(timing_waterfall(a, b, Unavailable("no"), 1.0), Unavailable)


def test_verdict_words() -> None:
    a = StepParts("a", 4, 3_000_000, {"idle": 1_000_000, "attention": 2_000_000})
    b = StepParts("b", 4, 2_710_000, {"idle": 690_000, "attention": 2_020_000})
    fall = waterfall(a, b)
    assert isinstance(fall, Waterfall)
    text = "a takes 0.29 ms more a step than b: 0.31 ms idle, −0.02 ms attention"
    assert verdict_words(fall) == text == verdict_words(waterfall(b, a))
    timed = timing_waterfall(a, b, 3_000_000, 2_710_000)
    assert "0.31 ms idle (modelled)" in verdict_words(timed)
    assert "steps 1–4 of a round, there 0.90× as long" in timed.note
    assert "takes as long a step as" in verdict_words(
        waterfall(a, StepParts("c", 4, 3_000_000, {"idle": 900_000, "attention": 2_100_000}))
    )
    assert verdict_words(fall, limit=1).endswith("than b: 0.31 ms idle")
    same = waterfall(a, a)
    assert isinstance(same, Waterfall)
    assert verdict_words(same) == "no category differs by 0.005 ms"
    twice = waterfall(a, StepParts("a", 4, 2_000_000, {"attention": 2_000_000}))
    assert verdict_words(twice).startswith("a (A) takes 1.00 ms more a step than a (B): 1.00 ms")


@given(st.integers(0, 10**12), st.dictionaries(st.text(max_size=3), st.integers(0, 10**15)))
def test_apportion_is_exact(total: int, weights: dict[str, int]) -> None:
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    whole = sum(weights.values())
    for name, weight in weights.items() if whole else ():
        assert abs(parts[name] * whole - total * weight) < whole


def test_untrusted_names_are_made_printable() -> None:
    made = make_trace(2, (K(0, 10, "evil\x1b[2J\nname"),))
    report: KernelReport = kernel_report(ready(made))
    assert "\x1b" not in report.kernels[0].name + report.kernels[0].short_name
    assert "\n" not in report.kernels[0].name
