"""The run file: what goes in comes out, and other readers of nsys exports find what they need."""

from __future__ import annotations

import os
import sqlite3
from array import array
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runfile_factory import (
    T0,
    as_read,
    sample_engine,
    sample_info,
    sample_operators,
    sample_round,
    sample_run,
    write_run,
)

from llmprof.errors import RunFileError
from llmprof.records import (
    ClockReading,
    EngineInfo,
    EngineRecord,
    GpuDevice,
    GpuSample,
    Missing,
    NvtxEvent,
    RoundRecord,
    RunInfo,
    Warned,
)
from llmprof.runfile.nvtx import self_times
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import global_pid, global_tid
from llmprof.runfile.writing.writer import RunFileWriter

TABLES = {
    "LLMPROF_RUN": RunInfo,
    "LLMPROF_ENGINE": EngineRecord,
    "LLMPROF_ROUND": RoundRecord,
    "LLMPROF_GPU_DEVICE": GpuDevice,
    "LLMPROF_GPU_SAMPLE": GpuSample,
    "LLMPROF_MISSING": Missing,
    "LLMPROF_WARNING": Warned,
    "LLMPROF_CLOCK": ClockReading,
}


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as db:
        return db.execute(sql).fetchall()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


# -- round trip ----------------------------------------------------------------------------------


def test_everything_comes_back(file: Path) -> None:
    data = sample_run()
    write_run(file, data)
    with RunFileReader(file) as reader:
        assert reader.is_llmprof()
        assert reader.run_data() == as_read(data, file)
    assert list(file.parent.iterdir()) == [file], "no journal or WAL is left"


def test_a_run_without_a_gpu_has_no_gpu_tables(file: Path) -> None:
    write_run(file, sample_run(gpu=False))
    tables = {name for (name,) in rows(file, "SELECT name FROM sqlite_master")}
    assert not {t for t in tables if t.startswith(("GPU_", "TARGET_INFO_GPU", "CUPTI"))}
    assert {"StringIds", "PROCESSES", "ENUM_CUDA_MEMCPY_OPER", "LLMPROF_LOG"} <= tables


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_the_fields_of_the_record(file: Path, table: str) -> None:
    write_run(file, sample_run())
    columns = [row[1] for row in rows(file, f"PRAGMA table_info({table})")]
    elsewhere = ("stamps_ns", "steps_from", "labels", "other_tids")
    wanted = [f.name for f in fields(TABLES[table]) if f.name not in elsewhere]
    assert columns == wanted


text = st.text(max_size=20)  # control characters, NUL and quotes included; no lone surrogates
count = st.integers(0, 2**62)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
engines = st.builds(
    EngineRecord,
    engine_id=st.just(1),
    label=text,
    name=text,
    python=text,
    options=st.dictionaries(text, text, max_size=3),
    state=st.sampled_from(["pending", "failed"]),
    failure_kind=st.none() | text,
    failure=st.none() | text,
    info=st.none()
    | st.builds(
        EngineInfo,
        versions=st.dictionaries(text, text, max_size=2),
        parameters=st.none() | count,
        bits_per_weight=st.none() | st.floats(allow_nan=False),
        cuda_graph=st.none() | st.booleans(),
        synchronous=st.booleans(),
        notes=st.lists(text, max_size=2),
    ),
    pid=st.none() | st.integers(1, 2**22),
    warmup_stable=st.none() | st.booleans(),
    text=st.none() | text,
)
stamps = st.lists(st.integers(0, 2**40), max_size=6)


@st.composite
def rounds(draw: st.DrawFn) -> RoundRecord:
    """Any stamps at all: equal, decreasing, none."""
    return RoundRecord(
        round_id=draw(count),
        engine_id=1,
        pass_name=draw(st.sampled_from(["timing", "traced"])),
        index=draw(count),
        pid=draw(st.integers(1, 2**22)),
        tid=draw(st.integers(1, 2**22)),
        start_ns=T0 + draw(st.integers(0, 2**40)),
        prefill_start_ns=T0 + draw(st.integers(0, 2**40)),
        stamps_ns=array("q", [T0 + s for s in draw(stamps)]),
        end_ns=T0 + draw(st.integers(0, 2**40)),
        complete=draw(st.booleans()),
        synchronous=draw(st.booleans()),
        tokens=draw(st.lists(st.lists(count, max_size=3), max_size=3)),
        energy_mj=draw(st.none() | st.tuples(count, count)),
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    engine=engines,
    record=rounds(),
    environment=st.dictionaries(text, json_value, max_size=3),
    log=text,
)
def test_any_value_comes_back(
    tmp_path: Path, engine: EngineRecord, record: RoundRecord, environment: Any, log: str
) -> None:
    file = tmp_path / "run.sqlite"
    file.unlink(missing_ok=True)
    data = replace(
        sample_run(gpu=False),
        info=replace(sample_info(), environment=environment, message=log),
        engines=[engine],
        rounds=[record],
        logs={log: log},
    )
    write_run(file, data)
    with RunFileReader(file) as reader:
        assert reader.run_data() == as_read(data, file)


def test_text_that_is_no_unicode_is_kept_readable(file: Path) -> None:
    with RunFileWriter(file, replace(sample_info(), command=["caf\udce9"])) as writer:
        writer.put_log("a", "\udcff!")
    with RunFileReader(file) as reader:
        data = reader.run_data()
    assert data.info.command == ["caf?"]
    assert data.logs == {"a": "?!"}


def test_state_changes_keep_the_other_fields(file: Path) -> None:
    with RunFileWriter(file, replace(sample_info(), state="running")) as writer:
        writer.set_state("running", schedule="blocks", environment={"gpu": "H100"})
        writer.set_state("failed", "every engine failed")
    with RunFileReader(file) as reader:
        info = reader.run_data().info
    assert info == replace(
        sample_info(),
        state="failed",
        message="every engine failed",
        schedule="blocks",
        environment={"gpu": "H100"},
    )


def test_a_run_that_never_ended_is_read_while_it_is_written(file: Path) -> None:
    with RunFileWriter(file, replace(sample_info(), state="running")) as writer:
        engine = sample_engine(0, "torch")
        writer.put_engine(engine)
        for i in range(3):
            writer.put_round(sample_round(i, engine, T0 + i * 10**9))
            with RunFileReader(file) as reader:
                data = reader.run_data()
            assert len(data.rounds) == i + 1
            assert data.info.state == "running"


# -- what other readers of nsys exports need -----------------------------------------------------


def test_ranges_are_nested_and_named(file: Path) -> None:
    engine = sample_engine(0, "torch")
    tight = replace(sample_round(1, engine, T0, step_ns=(5, 7)), prefill_start_ns=T0)
    data = replace(sample_run(["torch"], gpu=False), rounds=[tight])
    write_run(file, data)
    sql = (
        'SELECT eventType, "text", start, "end", globalTid, endGlobalTid, domainId FROM NVTX_EVENTS'
    )
    domain, outer, *inner = rows(file, sql)
    tid = global_tid(tight.pid, tight.tid)
    assert domain == (75, "llmprof", 0, None, global_pid(tight.pid), None, 1)
    assert outer == (59, "round 1", 0, tight.end_ns - T0, tid, None, 1)
    assert [row[1] for row in inner] == ["prefill", "decode 1", "decode 2"]
    for row in inner:
        assert row[0] == 59 and row[4:] == (tid, None, 1)
        assert outer[2] < row[2] <= row[3] <= outer[3]
    assert [row[3] - row[2] for row in inner[1:]] == [5, 7]


def test_an_unfinished_round_has_ranges_of_what_finished(file: Path) -> None:
    engine = sample_engine(0, "torch")
    whole = sample_round(1, engine, T0, pass_name="traced")
    cut = replace(whole, stamps_ns=whole.stamps_ns[:2], end_ns=T0 + 1, complete=False)
    none = replace(cut, round_id=2, stamps_ns=array("q"))
    write_run(file, replace(sample_run(["torch"], gpu=False), rounds=[cut, none]))
    names = [t for (t,) in rows(file, 'SELECT "text" FROM NVTX_EVENTS WHERE eventType = 59')]
    assert names == ["round 1 traced", "prefill", "decode 1", "round 1 traced"]


def test_processes_threads_and_span_are_true(file: Path) -> None:
    data = sample_run(["torch", "torch#2"], gpu=False)
    write_run(file, data)
    assert rows(file, "SELECT globalPid, pid, name FROM PROCESSES ORDER BY pid") == [
        (global_pid(pid), pid, f"llmprof:{e.label}")
        for e in data.engines
        for pid in (e.pid, e.traced_pid)
    ]
    named = rows(
        file, "SELECT globalTid, value FROM ThreadNames JOIN StringIds ON id = nameId ORDER BY 1"
    )
    assert named == [
        (global_tid(pid, pid), f"llmprof:{e.label}")
        for e in data.engines
        for pid in (e.pid, e.traced_pid)
    ]
    last = data.rounds[-1].end_ns
    assert rows(file, "SELECT duration, startTime, stopTime FROM ANALYSIS_DETAILS") == [
        (last - T0, T0, last)
    ]


def test_gpus_in_the_units_of_nsys(file: Path) -> None:
    data = sample_run()
    write_run(file, data)
    assert rows(
        file,
        "SELECT id, totalMemory, memoryBandwidth, clockRate, computeMajor FROM TARGET_INFO_GPU",
    ) == [(0, 81559 * 2**20, 3_352_320_000_000, 1_980_000_000, 9)]
    pids = [pid for e in data.engines for pid in (e.pid, e.traced_pid)]
    devices = rows(file, "SELECT cudaId, pid, numMultiprocessors FROM TARGET_INFO_CUDA_DEVICE")
    assert devices == [(0, pid, 132) for pid in pids]
    powers = rows(
        file,
        "SELECT timestamp, value, typeof(value), g.typeId & 0xFF FROM GPU_METRICS g"
        " JOIN TARGET_INFO_GPU_METRICS USING (typeId, metricId) WHERE metricName = 'Power [mW]'",
    )
    expected = [(s.timestamp_ns - T0, s.power_w or 0) for s in data.gpu_samples]
    assert powers == [(when, round(watt * 1000), "integer", 0) for when, watt in expected]
    per_metric = dict(rows(file, "SELECT metricId, count(*) FROM GPU_METRICS GROUP BY 1"))
    assert sorted(per_metric.values()) == [2, 10, 10, 10], "a value not read has no row"


# -- operators -----------------------------------------------------------------------------------


def test_operator_totals_count_each_nanosecond_once(file: Path) -> None:
    data = sample_run(["torch", "llamacpp"])
    traced = [r for r in data.rounds if r.pass_name == "traced"]
    timing = data.rounds[0]
    events = [e for r in [*traced, timing] for e in sample_operators(r)]
    write_run(file, data, events)
    mine = sample_operators(traced[0])
    linear = sum(e.end_ns - e.start_ns for e in mine if e.text == "aten::linear")
    addmm = sum(e.end_ns - e.start_ns for e in mine if e.text == "aten::addmm")
    with RunFileReader(file) as reader:
        totals = reader.nvtx_op_totals(traced[0].engine_id)
        assert reader.nvtx_op_totals(traced[0].engine_id, limit=1) == totals[:1]
    assert totals == sorted(
        [("aten::linear", 8, linear - addmm), ("aten::addmm", 8, addmm)],
        key=lambda op: -op[2],
    )


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40), st.integers(0, 20)), max_size=12))
def test_self_times_add_up_to_the_time_covered(
    spans: list[tuple[int, int, int]],
) -> None:
    """Even where ranges overlap without being nested, as a clock's jitter makes them."""
    events = [(t, start, start + length, f"op{i}") for i, (t, start, length) in enumerate(spans)]
    events.sort(key=lambda e: (e[0], e[1], -e[2]))
    totals = self_times(events)
    outermost = {(t, ns) for t, ns in _covered_by_cut(events)}
    assert sum(op.total_ns for op in totals) == len(outermost)
    assert all(op.total_ns >= 0 and op.calls == 1 for op in totals)


def _covered_by_cut(events: list[tuple[int, int, int, str]]) -> set[tuple[int, int]]:
    """Nanoseconds in any outermost range: one that starts inside another is cut at its end."""
    covered: set[tuple[int, int]] = set()
    thread, end = -1, -1
    for t, start, stop, _ in events:
        if t != thread or start >= end:
            thread, end = t, stop
            covered |= {(t, ns) for ns in range(start, stop)}
    return covered


def test_a_run_without_operators_has_none(file: Path) -> None:
    write_run(file, sample_run())
    with RunFileReader(file) as reader:
        assert reader.nvtx_op_totals(0) == []


def test_operators_of_other_domains_stay_apart(file: Path) -> None:
    data = sample_run(["torch"])
    traced = data.rounds[-1]
    start, end = traced.stamps_ns[0], traced.stamps_ns[1]
    events = [NvtxEvent(start, end, "mine", traced.pid, 99, domain) for domain in ("", "user")]
    write_run(file, data, events)
    with RunFileReader(file) as reader:
        assert reader.nvtx_op_totals(0) == []
    domains = dict(rows(file, 'SELECT "text", domainId FROM NVTX_EVENTS WHERE eventType = 75'))
    assert domains == {"llmprof": 1, "user": 2}


def test_a_failed_call_leaves_nothing_and_the_next_one_works(file: Path) -> None:
    engine = sample_engine(0, "torch")
    with RunFileWriter(file, sample_info()) as writer:
        with pytest.raises(ValueError, match="never put"):
            writer.put_round(sample_round(1, engine, T0))
        writer.put_engine(engine)
        bad = replace(sample_round(1, engine, T0), tid=1 << 24)
        with pytest.raises(ValueError, match="thread id"):
            writer.put_round(bad)
        writer.put_round(sample_round(1, engine, T0))
        with pytest.raises(sqlite3.IntegrityError):
            writer.put_round(sample_round(1, engine, T0))
    with RunFileReader(file) as reader:
        assert len(reader.run_data().rounds) == 1
    assert rows(file, "SELECT count(*) FROM NVTX_EVENTS WHERE eventType = 75") == [(1,)]


# -- where it cannot be written ------------------------------------------------------------------


def test_an_existing_file_is_never_overwritten(file: Path) -> None:
    file.write_text("my notes")
    with pytest.raises(RunFileError, match="exists already"):
        RunFileWriter(file, sample_info())
    assert file.read_text() == "my notes"


def test_an_empty_file_is_used(file: Path) -> None:
    file.touch()
    write_run(file, sample_run())


def test_bad_places_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for place, hint in (
        (tmp_path / "no" / "run.sqlite", "does not exist: create it"),
        (tmp_path / "file" / "run.sqlite", "Not a directory"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/proc/run.sqlite"), "/proc/run.sqlite"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(RunFileError, match=hint) as failed:
            RunFileWriter(place, sample_info())
        assert "\n" not in str(failed.value)
