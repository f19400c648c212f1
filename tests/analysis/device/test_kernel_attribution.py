"""Kernel → step: by time only where it is proved, else by launch, else not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trace_factory import LAYER, PID, K, Made, make_trace, with_error

from llmprof.analysis.device.attribution import attribute
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints, TraceRows

BACK_TO_BACK = (K(0, 500), K(500, 500))
"""Fills a step of 1000 ns: the device never rests."""


def same(found: Ints, truth: Ints) -> bool:
    return bool(np.array_equal(found, truth))


def failed(made: Made, error_ns: int = 0) -> list[str]:
    return [c.name for c in attribute(made.rows, made.record, error_ns).checks if not c.passed]


@pytest.mark.parametrize("api", [False, True])
def test_a_synchronous_engine_is_attributed_by_time(api: bool) -> None:
    made = make_trace(steps=5, api=api, copy_at=700)
    found = attribute(made.rows, made.record)
    assert found.method == "time" and found.unavailable is None
    assert same(found.kernel_step, made.kernel_step) and same(found.copy_step, made.copy_step)
    assert found.bounds_ns.tolist() == list(made.record.stamps_ns)
    assert all(c.passed for c in found.checks)
    assert ("launches" in {c.name for c in found.checks}) == api


@pytest.mark.parametrize("claims_synchronous", [False, True])
@pytest.mark.parametrize("kernels", [BACK_TO_BACK, LAYER], ids=["saturated", "with gaps"])
def test_an_asynchronous_engine_goes_by_launch(
    claims_synchronous: bool, kernels: tuple[K, ...]
) -> None:
    """Kernels lag the host by two and a half steps, also where the engine says that it waits."""
    made = make_trace(6, kernels, lag_ns=2500, synchronous=claims_synchronous, api=True)
    found = attribute(made.rows, made.record)
    assert found.method == "correlation"
    assert same(found.kernel_step, made.kernel_step)


@pytest.mark.parametrize("claims_synchronous", [False, True])
def test_an_asynchronous_engine_without_api_calls_has_no_steps(claims_synchronous: bool) -> None:
    made = make_trace(6, BACK_TO_BACK, lag_ns=2300, synchronous=claims_synchronous)
    found = attribute(made.rows, made.record)
    assert found.method is None and isinstance(found.unavailable, Unavailable)
    assert "--trace full" in found.unavailable.reason
    assert set(found.kernel_step) == {-1} and found.steps == 0


def test_a_lag_of_whole_steps_hides_from_the_stamps_but_not_from_the_launches() -> None:
    """Every kernel ends before a stamp, just not before that of its own step."""
    lagging = make_trace(6, LAYER, lag_ns=2000, api=True)
    assert "across" not in failed(lagging) and "launches" in failed(lagging)
    assert same(attribute(lagging.rows, lagging.record).kernel_step, lagging.kernel_step)


@pytest.mark.parametrize("lag", [1000, 2000])
def test_a_lag_of_whole_steps_without_api_calls(lag: int) -> None:
    """Caught by what is out of place: nothing runs in prefill."""
    made = make_trace(6, LAYER, lag_ns=lag)
    record = replace(made.record, end_ns=made.record.stamps_ns[-1])
    assert attribute(made.rows, record).method is None
    assert failed(replace(made, record=record)) == ["empty"]


def test_graph_kernels_share_the_step_of_their_launch() -> None:
    graph = tuple(replace(k, graph=True) for k in LAYER)
    made = make_trace(5, graph, lag_ns=2500, synchronous=False, api=True)
    found = attribute(made.rows, made.record)
    assert len(np.unique(made.rows.kernels.correlation)) == 6
    assert found.method == "correlation" and same(found.kernel_step, made.kernel_step)


def test_device_bounds_end_with_the_last_work_of_a_step() -> None:
    made = make_trace(3, LAYER, lag_ns=2500, synchronous=False, api=True, origin=0)
    found = attribute(made.rows, made.record)
    ends = [2500 + step * 1000 + 540 for step in (1, 2, 3)]
    assert found.bounds_ns.tolist() == [2500 + 700, *ends]


@pytest.mark.parametrize("offset", [-15, 15])
def test_a_clock_error_within_its_bound_changes_nothing(offset: int) -> None:
    made = make_trace(4, (K(10, 400), K(500, 490)), api=True)  # ends 10 ns before the stamp
    moved = with_error(made, offset)
    assert attribute(moved.rows, moved.record).method != "time"
    found = attribute(moved.rows, moved.record, clock_error_ns=15)
    assert found.method == "time" and same(found.kernel_step, made.kernel_step)


def test_a_kernel_that_could_be_in_either_step_is_not_guessed() -> None:
    made = make_trace(4, (K(10, 400), K(985, 10)))
    assert attribute(made.rows, made.record, clock_error_ns=1).method == "time"
    assert failed(made, error_ns=20) == ["either"]


def test_dropped_launch_records() -> None:
    made = make_trace(50, LAYER, lag_ns=2500, synchronous=False, api=True)
    found = attribute(_without_calls(made.rows, 1), made.record)
    assert found.method == "correlation" and int((found.kernel_step == -1).sum()) == 1
    found = attribute(_without_calls(made.rows, 60), made.record)
    assert found.method == "correlation"
    # All that is lost comes last here, without a neighbour behind it; what runs after the last
    # stamp is in no step anyway.
    k = made.rows.kernels
    lost = (found.kernel_step == -1) & (k.start_ns < made.record.stamps_ns[-1])
    assert found.lost_kernels == int(lost.sum()) > 0
    assert found.lost_ns == int((k.end_ns - k.start_ns)[lost].sum())
    assert f"the step of {found.lost_kernels} kernels" in found.reason
    known = found.kernel_step >= 0
    assert np.array_equal(found.kernel_step[known], made.kernel_step[known])
    found = attribute(_without_calls(made.rows, 120), made.record)
    assert found.unavailable is not None and "120 of 201 kernels" in found.unavailable.reason


def test_a_kernel_without_a_launch_record_is_of_its_neighbours_step() -> None:
    """A stream keeps the order of the launches."""
    made = make_trace(20, LAYER, lag_ns=2500, synchronous=False, api=True)
    inner = np.flatnonzero(made.kernel_step == 7)[1:3]
    lost = made.rows.kernels.correlation[inner]
    a = made.rows.api
    kept = ~np.isin(a.correlation, lost)
    columns = {
        name: getattr(a, name)[kept]
        for name in ("start_ns", "end_ns", "pid", "tid", "correlation", "event_class", "name_id")
    }
    found = attribute(replace(made.rows, api=replace(a, **columns)), made.record)
    assert found.method == "correlation" and found.lost_kernels == 0
    assert np.array_equal(found.kernel_step, made.kernel_step)


def _without_calls(rows: TraceRows, count: int) -> TraceRows:
    a = rows.api
    columns = {
        name: getattr(a, name)[: len(a) - count]
        for name in ("start_ns", "end_ns", "pid", "tid", "correlation", "event_class", "name_id")
    }
    return replace(rows, api=replace(a, **columns))


def test_other_processes_are_outside() -> None:
    made = make_trace(3)
    made.rows.kernels.pid[::2] = PID + 1
    found = attribute(made.rows, made.record)
    assert set(found.kernel_step[::2]) == {-1}
    made.rows.kernels.pid[:] = PID + 1
    assert "no work of process" in attribute(made.rows, made.record).reason


def test_rounds_without_steps_and_empty_traces() -> None:
    made = make_trace(3)
    short = replace(made.record, stamps_ns=made.record.stamps_ns[:1])
    assert "no finished decode step" in attribute(made.rows, short).reason
    assert attribute(TraceRows(), made.record).method is None


def test_work_after_the_last_stamp_refutes_a_synchronous_engine() -> None:
    made = make_trace(4)
    record = replace(made.record, stamps_ns=made.record.stamps_ns[:-1])
    assert failed(replace(made, record=record)) == ["late"]
    assert attribute(made.rows, record).method is None
