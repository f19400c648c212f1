"""Which tables of a file hold work of a device, which of them are read, and what a row needs.

A busy time is right only if every table that occupies the device is read. So tables are told by
what they are, not by a list of names: rows with a begin, an end, a device and a stream are work of
that stream, whatever the tracer calls it; rows with a device but no stream may be.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from llmprof.runfile.database import quoted

KERNELS, CALLS = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"
GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
"""One row a replay of a whole CUDA graph: what nsys records by default."""
SET, GRAPH, OTHER = -1, -2, -16
"""Kinds of ``CopyRows`` beside nsys' copyKind. ``OTHER - i`` is the i-th table that is known by its
columns alone."""
KINDS: dict[str, int | None] = {
    "CUPTI_ACTIVITY_KIND_MEMCPY": None,
    "CUPTI_ACTIVITY_KIND_MEMSET": SET,
    GRAPHS: GRAPH,
}
"""Table of device work that is no kernel → its kind, ``None``: its own copyKind."""

_FAR_NS = 1 << 62
"""146 years: no time of a trace is further from 0."""
_STREAM = {"start", "end", "deviceId", "streamId"}
_DEVICES = ("deviceId", "cuDeviceId", "gpu", "gpuId")
_NO_WORK = re.compile(
    # Waiting and marks in streams, and what the host does.
    r"CUPTI_ACTIVITY_KIND_(SYNCHRONIZATION|CUDA_EVENT|OVERHEAD|RUNTIME|DRIVER|OPENACC_.*|NAME)"
    # States, counters and the operating system's queues; the work itself has its own rows.
    r"|CUDA_GPU_MEMORY_.*|CUDA_UM_.*|GPU_MEMORY_.*|GPU_METRICS|GENERIC_EVENTS|.*_API|.*_STATS"
    r"|WDDM_.*|SLI_.*|NV_LOAD_BALANCE.*|.*CONTEXT_SWITCH.*|FECS_EVENTS|TARGET_INFO_.*|LLMPROF_.*"
    r"|DX12_MEMORY_OPERATION|DEMOTED_BYTES_EVENTS|TOTAL_BYTES_.*|MEMORY_.*|NVLINK_.*|NIC_.*"
)
_KNOWN = re.compile(
    # What holds no time, and host events that other parts read or that nothing here asks for.
    r"ENUM_.*|.*StringIds|StringIds|META_DATA_.*|EXPORT_META_DATA|ANALYSIS_.*|PROCESSES|ThreadNames"
    r"|ProcessStreams|NVTX_.*|OSRT_.*|COMPOSITE_EVENTS|SAMPLING_.*|SCHED_EVENTS|GENERIC_.*"
    r"|DIAGNOSTIC_EVENT|PROFILER_OVERHEAD|CUBLAS_EVENTS|CUDNN_EVENTS|CUDA_GRAPH_.*|OPENMP_.*"
    r"|sqlite_.*"
)


def columns(sql: sqlite3.Connection, table: str) -> dict[str, str]:
    """Column → declared type in capitals."""
    rows = sql.execute(f"PRAGMA table_info({quoted(table)})")
    return {str(row[1]): str(row[2]).upper() for row in rows}


def work_tables(sql: sqlite3.Connection, tables: set[str]) -> dict[str, int | None]:
    """Tables of device work beside the kernels → kind; those known by name first."""
    found = {table: kind for table, kind in KINDS.items() if table in tables}
    for table in sorted(tables - KINDS.keys() - {KERNELS}):
        if not _NO_WORK.fullmatch(table) and columns(sql, table).keys() >= _STREAM:
            found[table] = OTHER - (len(found) - len(found.keys() & KINDS.keys()))
    return found


def kind_name(table: str) -> str:
    """How rows of a table that is known by its columns alone are called."""
    return f"[{table.removeprefix('CUPTI_ACTIVITY_KIND_').replace('_', ' ').lower()}]"


def doubtful_tables(sql: sqlite3.Connection, tables: set[str]) -> list[str]:
    """Tables with rows that have a device and a time, and are not read: they may occupy it."""
    read = {KERNELS, *work_tables(sql, tables)}
    found = []
    for table in sorted(tables - read):
        if _NO_WORK.fullmatch(table) or _KNOWN.fullmatch(table):
            continue
        there = columns(sql, table).keys()
        named = re.search(r"WORKLOAD|KERNEL|MEMCPY|MEMSET|GRAPH_TRACE", table)
        if (named or there & set(_DEVICES)) and has_rows(sql, table):
            found.append(table)
    return found


def unknown_tables(sql: sqlite3.Connection, tables: set[str]) -> list[str]:
    """Tables with rows that nothing here reads and that no version seen so far had."""
    read = {KERNELS, CALLS, *work_tables(sql, tables)}
    return [
        table
        for table in sorted(tables - read)
        if not _NO_WORK.fullmatch(table) and not _KNOWN.fullmatch(table) and has_rows(sql, table)
    ]


def has_rows(sql: sqlite3.Connection, table: str) -> bool:
    return sql.execute(f"SELECT 1 FROM {quoted(table)} LIMIT 1").fetchone() is not None


@dataclass(frozen=True)
class Columns:
    """SQL expressions over one table, whatever its columns are declared as."""

    there: dict[str, str]

    def value(self, name: str) -> str:
        """An integer; 0 for NULL and for a column that the file does not have. Files cut down to
        short names of kernels have those."""
        if name == "demangledName" and name not in self.there:
            name = "shortName"
        if name not in self.there:
            return "0"
        return f"coalesce({self._whole(name)}, 0)"

    def time(self, name: str) -> str:
        """An integer where it is a number: REAL columns (files that pandas wrote) are rounded."""
        return self._whole(name)

    def process(self, column: str) -> str:
        return f"({self.value(column)} >> 24)" if column in self.there else "0"

    def usable(self, from_ns: int) -> str:
        """Both times are numbers, in order, and the start is no 0 from which the row would reach
        into what begins at ``from_ns``: tracers write 0 for a time that they do not know."""
        kinds = "('integer', 'real')"
        numbers = f'typeof(start) IN {kinds} AND typeof("end") IN {kinds}'
        numbers += f' AND start > -{_FAR_NS} AND "end" < {_FAR_NS}'
        late = f' AND NOT (start = 0 AND ("end" = 0 OR "end" > {from_ns}))' if from_ns > 0 else ""
        return f'({numbers} AND "end" >= start{late})'

    def _whole(self, name: str) -> str:
        column = quoted(name)
        # INTEGER affinity stores a whole REAL as an integer; a time may have a fraction even so.
        if "INT" in self.there[name] and name not in ("start", "end"):
            return column
        whole = f"CAST(round({column}) AS INTEGER)"
        return f"CASE typeof({column}) WHEN 'real' THEN {whole} ELSE {column} END"


@dataclass
class Tally:
    """Every row of one table in one reading: ``rows`` is the sum of all others."""

    table: str
    rows: int = 0
    read: int = 0
    elsewhere: int = 0
    """Of other processes."""
    outside: int = 0
    """Before or after the stretch of time that was asked for."""
    unusable: int = 0
    """Without times that can be used: no number, an end before the start, zero."""
    cut: int = 0
    """Beyond the limit of rows."""
