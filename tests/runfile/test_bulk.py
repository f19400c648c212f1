"""Whole columns into the tables of a trace."""

from __future__ import annotations

import sqlite3
from array import array
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from runfile_factory import (
    T0,
    sample_info,
)

from llmprof.runfile.schema import BulkTable, global_pid, statements
from llmprof.runfile.writing.writer import RunFileWriter


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as db:
        return db.execute(sql).fetchall()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def kernel_columns(n: int, name: int) -> dict[str, Any]:
    ones = {
        column: [1] * n
        for column in (
            "deviceId", "contextId", "streamId", "registersPerThread", "gridId",
            "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ",
            "staticSharedMemory", "dynamicSharedMemory",
            "localMemoryPerThread", "localMemoryTotal",
        )
    }  # fmt: skip
    start = T0 + np.arange(n, dtype=np.uint64) * 10
    return {
        **ones,
        "start": start,
        "end": start + 7,
        "demangledName": np.full(n, name, np.int32),
        "shortName": [name] * n,
        "graphNodeId": [None, *range(n - 1)],
        "globalPid": array("q", [global_pid(4000)] * n),
    }


def test_bulk_takes_lists_arrays_and_nulls(file: Path) -> None:
    n = 70_000  # more than a chunk
    with RunFileWriter(file, sample_info()) as writer:
        name = writer.string_id("void gemm<float>(float*)")
        assert writer.string_id("void gemm<float>(float*)") == name
        writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", kernel_columns(n, name))
    assert rows(
        file,
        'SELECT count(*), sum("end" - start), min(start), max("end"), count(graphNodeId), value'
        " FROM CUPTI_ACTIVITY_KIND_KERNEL JOIN StringIds ON id = shortName",
    ) == [(n, 7 * n, 0, (n - 1) * 10 + 7, n - 1, "void gemm<float>(float*)")]
    assert rows(file, "SELECT duration FROM ANALYSIS_DETAILS") == [((n - 1) * 10 + 7,)]


def test_bulk_refuses_what_does_not_fit(file: Path) -> None:
    good = kernel_columns(3, 1)
    with RunFileWriter(file, sample_info()) as writer:
        for table, columns, hint in (
            ("LLMPROF_RUN", good, "not a bulk table"),
            ("CUPTI_ACTIVITY_KIND_KERNEL", {**good, "shade": [1, 2, 3]}, "no column shade"),
            ("CUPTI_ACTIVITY_KIND_KERNEL", {**good, "gridX": [1]}, "unequal"),
            ("CUPTI_ACTIVITY_KIND_KERNEL", {"start": [T0], "end": [T0]}, "needs column"),
        ):
            with pytest.raises(ValueError, match=hint):
                writer.bulk(table, columns)  # type: ignore[arg-type]
        writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", kernel_columns(0, 1) | {"graphNodeId": []})
    tables = {name for (name,) in rows(file, "SELECT name FROM sqlite_master")}
    assert "CUPTI_ACTIVITY_KIND_KERNEL" not in tables


@pytest.mark.parametrize("table", get_args(BulkTable))
def test_every_bulk_table_has_a_definition(table: str) -> None:
    assert table in statements()
