"""Several calls of the writer in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from runfile_factory import T0, sample_engine, sample_info, sample_round

from llmprof.records import Missing
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.writer import RunFileWriter


def calls(start: int, count: int = 100) -> dict[str, np.ndarray]:
    ones = {name: np.ones(count, np.int64) for name in ("eventClass", "nameId", "returnValue")}
    start_ns = start + np.arange(count, dtype=np.int64) * 10
    return {**ones, "start": start_ns, "end": start_ns + 3, "correlationId": np.arange(count)}


def count(file: Path, table: str) -> int:
    """As another program sees it."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        (number,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(number)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunFileWriter]:
    with RunFileWriter(tmp_path / "run.sqlite", sample_info()) as made:
        yield made


def test_nothing_is_seen_before_its_end(writer: RunFileWriter) -> None:
    engine = sample_engine(0, "torch")
    with writer.batch():
        writer.put_engine(engine)
        writer.string_id("cudaLaunchKernel")
        writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", calls(T0))
        writer.put_round(sample_round(0, engine, T0))
        assert count(writer.path, "LLMPROF_ROUND") == 0
    assert count(writer.path, "CUPTI_ACTIVITY_KIND_RUNTIME") == 100
    writer.put_round(sample_round(1, engine, T0 + 10**9))  # no batch any more
    with RunFileReader(writer.path) as reader:
        assert len(reader.run_data().rounds) == 2


def test_a_batch_without_a_call_writes_nothing(writer: RunFileWriter) -> None:
    before = writer.path.read_bytes()
    with writer.batch():
        pass
    assert writer.path.read_bytes() == before


def test_a_call_that_fails_takes_back_what_was_before_it(writer: RunFileWriter) -> None:
    writer.put_missing([Missing("run", "gpm", "kept")])
    with pytest.raises(ValueError, match="needs column"), writer.batch():
        writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", calls(T0))
        writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", {"start": [T0], "end": [T0]})
    assert count(writer.path, "LLMPROF_MISSING") == 1
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        count(writer.path, "CUPTI_ACTIVITY_KIND_RUNTIME")
    # The writer knows that the table is gone, and that no string was written.
    name = writer.string_id("cudaLaunchKernel")
    writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", calls(T0))
    with closing(sqlite3.connect(writer.path)) as db:
        assert db.execute("SELECT value FROM StringIds WHERE id = ?", (name,)).fetchone()
    assert count(writer.path, "CUPTI_ACTIVITY_KIND_RUNTIME") == 100


def test_an_exception_of_the_caller_takes_back_the_batch(writer: RunFileWriter) -> None:
    with pytest.raises(KeyboardInterrupt), writer.batch():
        writer.put_missing([Missing("run", "gpm", "lost")])
        raise KeyboardInterrupt
    assert count(writer.path, "LLMPROF_MISSING") == 0


def test_zero_is_null_where_that_is_asked_for(writer: RunFileWriter) -> None:
    none = ("graphNodeId",)
    nodes = np.array([0, 5, 0, 1 << 40], np.int64)
    columns = {
        **{
            name: np.ones(4, np.int64)
            for name in (
                "deviceId", "contextId", "streamId", "registersPerThread", "gridId", "gridX",
                "gridY", "gridZ", "blockX", "blockY", "blockZ", "staticSharedMemory",
                "dynamicSharedMemory", "localMemoryPerThread", "localMemoryTotal",
                "demangledName", "shortName",
            )
        },
        "start": T0 + np.arange(4), "end": T0 + 1 + np.arange(4),
    }  # fmt: skip
    writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", {**columns, "graphNodeId": nodes}, none)
    writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", {**columns, "graphNodeId": nodes * 0}, none)
    with closing(sqlite3.connect(writer.path)) as db:
        found = db.execute("SELECT graphNodeId FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchall()
    assert [n for (n,) in found] == [None, 5, None, 1 << 40, *[None] * 4]


def test_another_thread_is_refused(writer: RunFileWriter) -> None:
    with ThreadPoolExecutor() as pool:
        put = pool.submit(writer.put_missing, [Missing("run", "gpm", "lost")])
        assert isinstance(put.exception(), sqlite3.ProgrammingError)
    assert count(writer.path, "LLMPROF_MISSING") == 0
