"""One engine on several GPUs: work of two devices is never merged into one busy time."""

from __future__ import annotations

from array import array
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_factory import PID, K, Made, make_trace

from llmprof.analysis.device.attribution import attribute
from llmprof.analysis.device.gaps import GapReport, idle_gaps
from llmprof.analysis.device.kernels import TracedRound, kernel_report, prepare
from llmprof.analysis.device.sweep import covered_ns
from llmprof.analysis.device.waterfall import StepParts, step_parts
from llmprof.analysis.host.causes import GapCauses, gap_causes
from llmprof.analysis.host.peers import moved
from llmprof.records import RoundRecord, Unavailable
from llmprof.runfile.trace.rows import CopyRows, KernelRows, TraceRows

NO_HOST = Unavailable("not sampled")


def on_devices(made: Made, devices: dict[int, int]) -> Made:
    """``devices``: stream → device."""
    kernels = made.rows.kernels
    device = np.array([devices.get(s, 0) for s in kernels.stream.tolist()], np.int64)
    rows = TraceRows(replace(kernels, device=device), made.rows.copies, made.rows.api)
    return replace(made, rows=rows)


def ready(made: Made) -> TracedRound:
    return prepare(made.rows, made.record, attribute(made.rows, made.record), "torch")


def pipeline(api: bool = False) -> Made:
    """Layers split over two GPUs that take turns: each works 480 of 1000 ns a step."""
    kernels = (K(10, 480, "void first(float*)", 7), K(500, 480, "void second(float*)", 8))
    return on_devices(make_trace(5, kernels, api=api), {8: 1})


def test_each_gpu_of_a_pipeline_is_busy_half_of_the_time() -> None:
    report = kernel_report(ready(pipeline()))
    assert [(d.device, d.busy_ns, d.idle_ns) for d in report.devices] == [
        (0, 5 * 480, 5 * 520),
        (1, 5 * 480, 5 * 520),
    ]
    assert (report.device, report.busy_ns, report.idle_ns) == (0, 5 * 480, 5 * 520)
    assert report.busy_ms_per_step == pytest.approx(480e-6)
    assert report.idle_ms_per_step == pytest.approx(520e-6)
    assert report.kernels_per_step == 2  # of the engine: on all devices
    assert {k.short_name for k in report.kernels} == {"first", "second"}
    assert [d.kernels for d in report.devices] == [5, 5]


def test_the_primary_device_is_the_busiest() -> None:
    kernels = (K(10, 100, "void first(float*)", 7), K(200, 700, "void second(float*)", 8))
    traced = ready(on_devices(make_trace(4, kernels), {7: 3, 8: 5}))
    report = kernel_report(traced)
    assert report.device == 5 and report.busy_ns == 4 * 700
    assert [(d.device, d.primary) for d in report.devices] == [(3, False), (5, True)]
    gaps = idle_gaps(traced.timeline)
    assert isinstance(gaps, GapReport) and set(gaps.step_idle_ns) == {300}
    parts = step_parts(traced, "torch")
    assert isinstance(parts, StepParts)
    assert parts.parts_ns["idle"] == 300 and sum(parts.parts_ns.values()) == parts.step_ns == 1000


@pytest.mark.parametrize("api", [False, True])
def test_waiting_for_the_other_gpu_has_a_cause_of_its_own(api: bool) -> None:
    made = pipeline(api)
    traced = ready(made)
    found = gap_causes(traced, made.rows, made.record, NO_HOST)
    assert isinstance(found, GapCauses)
    times = {c.cause: c.total_ns for c in found.causes}
    assert sum(times.values()) == found.total_ns == 5 * 520
    # Launches lie 1 ns apart at the begin of a step, so with API calls some of it is launch pace.
    assert times["other GPU"] == 5 * 480 if not api else times.get("other GPU", 0) <= 5 * 480


def test_one_gpu_has_no_peer() -> None:
    made = make_trace(4)
    found = gap_causes(ready(made), made.rows, made.record, NO_HOST)
    assert isinstance(found, GapCauses) and [c.cause for c in found.causes] == ["unknown"]


spans = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 60), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=40,
)


def trace_of(items: list[tuple[int, int, int, bool]]) -> tuple[TraceRows, RoundRecord]:
    """Kernels and copies from (start, length, device, is kernel); steps of 100 ns."""

    def columns(rows: list[tuple[int, int, int, bool]]) -> dict[str, np.ndarray]:
        rows = sorted(rows)
        start = np.array([r[0] for r in rows], np.int64)
        return {
            "start_ns": start,
            "end_ns": start + np.array([r[1] for r in rows], np.int64),
            "device": np.array([r[2] for r in rows], np.int64),
            "pid": np.full(len(rows), PID, np.int64),
        }

    def full(kind: type, rows: list[tuple[int, int, int, bool]]) -> object:
        given = columns(rows)
        zero = np.zeros(len(rows), np.int64)
        other = {
            name: zero
            for name in kind.__dataclass_fields__
            if name not in given and name != "names"
        }
        return kind(**given, **other)

    kernels = full(KernelRows, [(0, 1, 0, True), *(i for i in items if i[3])])
    copies = full(CopyRows, [i for i in items if not i[3]])
    assert isinstance(kernels, KernelRows) and isinstance(copies, CopyRows)
    stamps = array("q", range(0, 600, 100))
    record = RoundRecord(1, 0, "traced", 0, PID, PID, 0, 0, stamps, stamps[-1], True)
    return TraceRows(kernels, copies), record


@settings(max_examples=150, deadline=None)
@given(spans)
def test_every_device_has_the_busy_time_that_a_ruler_finds(
    items: list[tuple[int, int, int, bool]],
) -> None:
    rows, record = trace_of(items)
    traced = prepare(rows, record, attribute(rows, record), "torch")
    bounds = traced.laid.bounds_ns
    first, last = int(bounds[0]), int(bounds[-1])
    for timeline in traced.devices:
        busy = np.zeros(1000, bool)
        for start, length, device, _ in [(0, 1, 0, True), *items]:
            if device == timeline.device:
                busy[start : start + length] = True
        assert int(timeline.busy_ns().sum()) == int(busy[first:last].sum())
        peers = [t for t in traced.devices if t is not timeline]
        starts, ends = timeline.start_ns, timeline.end_ns
        expected = np.zeros(1000, bool)
        for peer in peers:
            for start, end in zip(peer.start_ns.tolist(), peer.end_ns.tolist(), strict=True):
                expected[start:end] = True
        spans_of_peers = [(peer.start_ns, peer.end_ns) for peer in peers]
        found = covered_ns(spans_of_peers, starts, ends).tolist()
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        assert found == [int(expected[a:b].sum()) for a, b in pairs]
    report = kernel_report(traced)
    assert {d.device for d in report.devices} == {0, *(i[2] for i in items)}
    assert all(d.busy_ns + d.idle_ns == last - first for d in report.devices)
    assert report.busy_ns == max(d.busy_ns for d in report.devices)
    assert sum(c.total_ns for c in report.categories) == report.busy_ns
    if not isinstance(traced.timeline, Unavailable):
        parts = step_parts(traced, "torch")
        assert isinstance(parts, StepParts) and sum(parts.parts_ns.values()) == parts.step_ns
        found = gap_causes(traced, rows, record, NO_HOST)
        assert isinstance(found, GapCauses)
        assert sum(c.total_ns for c in found.causes) == found.total_ns == report.idle_ns


@given(
    st.dictionaries(st.sampled_from(["sync", "wait", "launch", "host"]), st.integers(0, 10**12)),
    st.integers(0, 10**12),
)
def test_moved_time_is_taken_from_waiting_alone(parts: dict[str, int], ns: int) -> None:
    rest = moved(parts, ("sync", "wait"), ns)
    waiting = parts.get("sync", 0) + parts.get("wait", 0)
    assert sum(parts.values()) - sum(rest.values()) == min(ns, waiting)
    assert all(rest.get(name, 0) == parts.get(name, 0) for name in ("launch", "host"))
    assert all(0 <= rest.get(name, 0) <= parts.get(name, 0) for name in ("sync", "wait"))
