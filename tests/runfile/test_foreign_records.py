"""Captures with lost, broken and oddly typed records: counted, bounded, and said."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from capture_factory import MS, Capture, global_pid
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import Opened

from llmprof.exports.text.table import render
from llmprof.records import Unavailable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "capture.sqlite"


# -- lost and broken records ---------------------------------------------------------------------


def test_lost_records_make_idle_an_upper_bound(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        for i in range(20):
            start = 100 * MS + i * 10 * MS
            made.range(start, start + 9_900_000, f"decode {i}")
            for k in range(10):
                at = start + k * 980_000 + 20_000
                launch = made.call(at - 15_000, at - 10_000)
                if i < 10 or k < 2:
                    made.kernel(at, at + 880_000, correlation=launch)
        made.put(
            "DIAGNOSTIC_EVENT", timestamp=0, timestampType=1, source=1, severity=2,
            text="Not all CUDA events might have been collected.", globalPid=None,
        )  # fmt: skip
    opened = Opened(file)
    assert "80 of 200 launches have no record" in opened.kernels.idle_at_most
    assert "the file says: Not all CUDA events" in opened.warnings
    assert "≤ " in render(opened.report, 100, opened.trace)
    causes = opened.first.causes
    assert not isinstance(causes, Unavailable) and causes.verdict.startswith("at most ")
    gpu = opened.document()["engines"][0]["tracing"]["gpu"]
    assert "Not all CUDA events" in gpu["idle_at_most"]


def launching(made: Capture, name: str, start: int, result: int = 0) -> None:
    made.call(start, start + 1000, name)
    made.db.execute(
        "UPDATE CUPTI_ACTIVITY_KIND_RUNTIME SET returnValue = ? WHERE start = ?", (result, start)
    )


def test_calls_that_start_no_work_are_not_lost_records(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps()
        at = 150 * MS + 500_000
        launching(made, "cudaLaunchKernel_v7000", at, result=98)
        launching(made, "cudaLaunchHostFunc_v10000", at + 2000)
        launching(made, "cudaMemcpyAsync_v3020", at + 4000)
        made.call(at + 10_000, at + 11_000, "cudaStreamBeginCapture_v10000")
        made.call(at + 12_000, at + 13_000, "cudaLaunchKernel_v7000")
        made.call(at + 14_000, at + 15_000, "cudaStreamEndCapture_v10000")
    assert Opened(file).kernels.idle_at_most == ""


def test_a_recording_that_ends_before_its_backlog_lost_nothing(file: Path) -> None:
    """The host is 30 ms ahead: the work of its last launches comes after the recording's end."""
    with Capture(file) as made:
        made.process()
        for i in range(60):
            at = 100 * MS + i * MS
            launch = made.call(at, at + 5000)
            if i < 30:
                made.kernel(at + i * MS, at + (i + 2) * MS - 1000, correlation=launch)
    assert Opened(file).kernels.idle_at_most == ""


def test_rows_without_a_usable_time_are_counted(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps()
        for i in range(20):
            at = 105 * MS + i * 10 * MS
            made.kernel(at, 0)
            made.kernel(at + 1000, at + 500)
        made.kernel(0, 200 * MS)
        made.kernel(0, 0)
    opened = Opened(file)
    assert opened.busy_idle[0] == pytest.approx(9.0)
    assert "42 of 242 rows of KERNEL have no usable time" in opened.warnings
    assert "42 records of GPU work" in opened.kernels.idle_at_most


@pytest.mark.parametrize("table", ["NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_KERNEL", None])
def test_times_in_real_columns(file: Path, table: str | None) -> None:
    with Capture(file) as made:
        if table != "CUPTI_ACTIVITY_KIND_KERNEL":
            made.table(
                "NVTX_EVENTS",
                "start REAL, end REAL, eventType INTEGER, text TEXT, globalTid INTEGER,"
                " domainId REAL",
            )
        if table != "NVTX_EVENTS":
            made.table(
                "CUPTI_ACTIVITY_KIND_KERNEL",
                "start REAL, end REAL, deviceId REAL, contextId, greenContextId, streamId REAL,"
                " correlationId REAL, globalPid INTEGER, demangledName REAL, shortName INTEGER,"
                " mangledName INTEGER, registersPerThread REAL, gridX, gridY, gridZ, blockX,"
                " blockY, blockZ, staticSharedMemory, dynamicSharedMemory, localMemoryPerThread,"
                " localMemoryTotal, gridId",
            )
        made.process()
        made.eager_steps()
    opened = Opened(file)
    assert (
        opened.busy_idle == pytest.approx((9.0, 1.0)) and len(opened.data.rounds[0].stamps_ns) == 21
    )
    assert opened.kernels.kernels_per_step == 10 and opened.kernels.idle_at_most == ""
    assert "times are REAL" in opened.warnings
    assert {k.name for k in opened.kernels.kernels} == {"void gemm(float*)"}


def test_a_newer_name_of_the_table_of_ranges(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps()
        made.db.execute("ALTER TABLE NVTX_EVENTS RENAME TO NVTX_EVENTS_V3")
    assert Opened(file).data.rounds[0].steps == 20


# -- nothing is dropped without being counted ----------------------------------------------------

TIMES = st.one_of(
    st.integers(-10, 3000),
    st.integers(0, 3000).map(float),
    st.floats(0, 3000),
    st.none(),
    st.sampled_from(["", "late", b"\x00\xff", float("inf"), -(2**62)]),
)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "CUPTI_ACTIVITY_KIND_KERNEL",
                "CUPTI_ACTIVITY_KIND_MEMCPY",
                "CUPTI_ACTIVITY_KIND_MEMSET",
                "CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
                "CUPTI_ACTIVITY_KIND_RUNTIME",
                "CUPTI_ACTIVITY_KIND_SOMETHING_NEW",
            ]
        ),
        TIMES,
        TIMES,
        st.sampled_from([1, 2, None]),
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(ROWS, st.sampled_from(["INTEGER", "REAL", "", "NUMERIC"]), st.integers(0, 500))
def test_no_row_of_an_activity_table_is_dropped_without_being_counted(
    rows: list[tuple[str, object, object, int | None]], declared: str, start: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.sqlite"
        with Capture(path) as made:
            for table, begin, end, pid in rows:
                owner = None if pid is None else global_pid(pid)
                common = f'start {declared}, "end" {declared}, correlationId INTEGER'
                if table.endswith("RUNTIME"):
                    columns, more = f"{common}, globalTid INTEGER", {"globalTid": owner}
                else:
                    columns = f"{common}, deviceId INTEGER, streamId INTEGER, globalPid INTEGER"
                    more = {"globalPid": owner, "deviceId": 0, "streamId": 1}
                made.put(table, columns, start=begin, end=end, correlationId=0, **more)
        with closing(sqlite3.connect(path)) as db:
            tables = {table for table, *_ in rows}
            truth = {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}
        from llmprof.runfile.trace.reader import read_trace

        with closing(sqlite3.connect(path)) as db:
            found = read_trace(db, {*tables}, global_pid(1) >> 24, (start, start + 1500))
        tallies = {tally.table: tally for tally in found.tallies}
        assert {table: tally.rows for table, tally in tallies.items()} == truth
        for tally in tallies.values():
            parts = (tally.read, tally.elsewhere, tally.outside, tally.unusable, tally.cut)
            assert tally.rows == sum(parts) and min(parts) >= 0 == tally.cut
        assert sum(t.read for t in tallies.values()) == sum(
            map(len, (found.kernels, found.copies, found.api))
        )
        for part in (found.kernels, found.copies, found.api):
            assert (part.end_ns >= part.start_ns).all()


# -- what it is called ---------------------------------------------------------------------------


def test_the_profiler_that_made_the_file_is_named_with_its_version(file: Path) -> None:
    with Capture(file, "2025.3.1.90") as made:
        made.process()
        made.eager_steps()
    opened = Opened(file)
    assert opened.document()["tool"] == {
        "name": "Nsight Systems",
        "version": "2025.3.1.90",
        "commit": None,
        "commit_reason": "made by Nsight Systems",
    }
    text = render(opened.report, 100, opened.trace)
    assert text.startswith("Nsight Systems 2025.3.1.90") and "which model ran" in text


def test_steps_without_any_work_are_not_shown(file: Path) -> None:
    """Ranges in two stretches, the longer one without any work: a warm-up on the CPU."""
    with Capture(file) as made:
        made.process()
        for i in range(30):
            made.range(10 * MS + i * MS, 10 * MS + i * MS + 900_000, f"decode {i}")
        made.eager_steps(count=10)
        made.db.execute("UPDATE NVTX_EVENTS SET start = start - 9900000000 WHERE start < 90000000")
        made.db.execute('UPDATE NVTX_EVENTS SET "end" = "end" - 9900000000 WHERE start < 0')
    opened = Opened(file)
    assert [r.steps for r in opened.data.rounds] == [10]
    assert any("30 steps in 1 group" in text for text in opened.first.steps_found.left_out)
    assert opened.kernels.kernels_per_step == 10


def test_ranks_can_be_told_apart_in_every_table(file: Path) -> None:
    with Capture(file) as made:
        for n in range(2):
            made.process(4001 + n, f"VLLM::Worker_TP{n}")
            made.eager_steps(pid=4001 + n, device=n, busy=0.4 + n / 10)
    opened = Opened(file)
    table = render(opened.report, 100, opened.trace)
    assert "er_TP0 " in table and "er_TP1" in table and "VLLM::Work…" not in table
