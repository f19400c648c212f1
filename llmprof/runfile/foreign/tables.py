"""Exports of Nsight Systems, read as a run: processes are engines, without steps.

Which ranges, or which device work, are the steps is for ``analysis.steps`` to say.

Nothing is taken for granted: tables and columns differ between versions (EXPORT_META_DATA until
2022, ``graphId`` since 2026), and a table without rows is not there. Such a file has no index, so
the kernels are not walked over here: opening ten million of them takes as long as their ranges.
"""

from __future__ import annotations

import re
import sqlite3
from array import array
from typing import Any

from llmprof.records import (
    EngineInfo,
    EngineRecord,
    Missing,
    RoundRecord,
    RunData,
    RunInfo,
    Warned,
)
from llmprof.runfile.activity import CALLS
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign import facts, notices, processes
from llmprof.runfile.foreign.source import TORCH, read_source

RANGES = "NVTX_EVENTS"


def read_foreign(sql: sqlite3.Connection, tables: set[str], path: str) -> RunData:
    """The small rows of an export: every process that used a device is an engine with one round
    over all of its work, and no steps."""
    devices = processes.devices_of(sql, tables)
    said, source = facts.all_of(sql, tables), read_source(sql, tables)
    data = RunData(
        RunInfo(
            t0_ns=0,
            t0_utc_ns=facts.wall_clock(sql, tables),
            tool_version=said.get("EXPORT_PRODUCT_VERSION", "?"),
            tool_commit=None,
            command=[],
            workload={},
            environment={
                "source": source.format,
                "version": said.get("EXPORT_PRODUCT_VERSION"),
                "export_schema": said.get("EXPORT_SCHEMA_VERSION"),
            },
            trace_level="full" if CALLS in tables else "kernels",
            state="finished",
            schedule="single",
            source="opened",
        ),
        path=path,
        source_file=source.file,
        gpu_devices=facts.devices(sql, tables),
    )
    reason = f"the file was recorded by {source.format}: traced rounds only"
    data.missing.append(Missing("run", "timing pass", reason))
    data.missing += notices.not_read(sql, tables)
    data.warnings += notices.warnings(sql, tables)
    span = processes.work_span(sql, tables)
    named = processes.names(sql, tables)
    numbers = processes.gpu_numbers(sql, tables, devices)
    labels = processes.labels([*devices], named, numbers)
    gpus = {gpu.index: gpu.name for gpu in data.gpu_devices}
    for process, mine in devices.items():
        info = EngineInfo.not_driven(
            device=processes.device_words(mine),
            notes=processes.gpu_notes(process, mine, numbers, gpus),
        )
        engine = add_engine(data, process, labels[process], info)
        if span is not None:
            add_whole_round(data, engine, process, span)
    for engine in data.engines if source.format == TORCH else ():
        engine.name = "torch"  # some rules for kernel names are an engine's
    for gpu, users in processes.sharers(numbers).items():
        who = ", ".join(labels[user] for user in users if user in labels)
        data.warnings.append(
            Warned("run", f"GPU {gpu} is used by {who}: idle time of one is not the GPU's")
        )
    return data


def add_engine(data: RunData, process: int, label: str, info: EngineInfo) -> EngineRecord:
    """One more engine: a process that llmprof did not drive."""
    engine = EngineRecord(
        engine_id=len(data.engines),
        label=label,
        name=label,
        python="",
        options={},
        state="finished",
        info=info,
        traced_pid=process & 0xFFFFFF,
    )
    data.engines.append(engine)
    return engine


def add_whole_round(
    data: RunData, engine: EngineRecord, process: int, span: tuple[int, int]
) -> None:
    """A traced round over all that a process did, without steps."""
    data.rounds.append(
        RoundRecord(
            round_id=max((r.round_id for r in data.rounds), default=0) + 1,
            engine_id=engine.engine_id,
            pass_name="traced",
            index=0,
            pid=process,
            tid=0,
            start_ns=span[0],
            prefill_start_ns=span[0],
            stamps_ns=array("q"),
            end_ns=span[1],
            complete=True,
            steps_from="none",
        )
    )


# -- tables ------------------------------------------------------------------------------------


def columns_of(sql: sqlite3.Connection, table: str) -> set[str]:
    """Names of the columns that this version has."""
    return {str(row[1]) for row in sql.execute(f"PRAGMA table_info({quoted(table)})")}


def range_table(tables: set[str]) -> str | None:
    """The table of NVTX ranges, by its usual name or that of a newer version of it."""
    if RANGES in tables:
        return RANGES
    newer = [table for table in tables if re.fullmatch(rf"{RANGES}_V\d+", table, re.IGNORECASE)]
    return max(newer, key=lambda table: int(table.rpartition("V")[2]), default=None)


def int_of(value: Any) -> int:
    return value if type(value) is int else 0


def last_row(sql: sqlite3.Connection, tables: set[str], table: str) -> int:
    """Highest rowid: the number of rows of a table that nothing was deleted from; no scan."""
    if table not in tables:
        return 0
    return int(sql.execute(f"SELECT coalesce(max(rowid), 0) FROM {quoted(table)}").fetchone()[0])
