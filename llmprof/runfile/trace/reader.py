"""Bulk rows of the CUPTI_ACTIVITY_KIND_* tables as numpy columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmprof.runfile import activity, schema
from llmprof.runfile.activity import CALLS, KERNELS, Columns, Tally
from llmprof.runfile.database import quoted
from llmprof.runfile.trace.chunks import Advance, silent, size, stretches
from llmprof.runfile.trace.rows import ApiRows, CopyRows, Ints, KernelRows, PmColumns, TraceRows
from llmprof.runfile.trace.sharing import LATER_NS

_KERNEL = {
    "start_ns": "start",
    "end_ns": "end",
    "device": "deviceId",
    "context": "contextId",
    "stream": "streamId",
    "correlation": "correlationId",
    "name_id": "demangledName",
    "grid_x": "gridX",
    "grid_y": "gridY",
    "grid_z": "gridZ",
    "block_x": "blockX",
    "block_y": "blockY",
    "block_z": "blockZ",
    "registers": "registersPerThread",
    "static_shared": "staticSharedMemory",
    "dynamic_shared": "dynamicSharedMemory",
    "graph_node": "graphNodeId",
    "graph": "graphId",
    "collective_bytes": "collectiveBytes",
}
_COPY = {
    "start_ns": "start",
    "end_ns": "end",
    "device": "deviceId",
    "context": "contextId",
    "stream": "streamId",
    "correlation": "correlationId",
    "bytes": "bytes",
    "kind": "copyKind",
    "graph_node": "graphNodeId",
}
_API = {
    "start_ns": "start",
    "end_ns": "end",
    "tid": "globalTid",
    "correlation": "correlationId",
    "event_class": "eventClass",
    "name_id": "nameId",
    "result": "returnValue",
}
_CHUNK = 1 << 13
"""Rows turned into numbers at once: Python's lock is held for a few ms only."""
_CALLS_A_KERNEL = 4
"""API calls that are read for each kernel of the limit."""


def trace_size(sql: sqlite3.Connection, tables: set[str]) -> int:
    """Rows that ``read_trace`` looks at."""
    wanted = (KERNELS, *activity.work_tables(sql, tables), CALLS)
    return sum(size(sql, table) for table in wanted if table in tables)


def read_trace(
    sql: sqlite3.Connection,
    tables: set[str],
    pid: int,
    window_ns: tuple[int, int],
    limit: int | None = None,
    advance: Advance = silent,
    calls: bool = True,
    look_back_ns: int = 0,
) -> TraceRows:
    """All rows of one process that overlap a stretch of time, ordered by start.

    Args:
        limit: kernels, and as many copies, at most: those that begin first. Of a stretch with more,
            ``TraceRows.complete_ns`` says up to when nothing is missing, and nothing that begins
            later is given.
        calls: with API calls.
        look_back_ns: calls are read from so long before the stretch on: what runs in its first step
            may have been launched before.
    """
    # Of a file that llmprof did not make, ``pid`` is all of ``globalPid >> 24``.
    process = schema.global_pid(pid) >> 24 if "LLMPROF_RUN" in tables else pid
    look = _Look(sql, process, *window_ns, advance)
    found = TraceRows(unread=look.unread(activity.doubtful_tables(sql, tables)))
    if KERNELS in tables:
        columns = look.columns(KERNELS, _KERNEL, limit)
        found.kernels = KernelRows(pid=_constant(columns, pid), names={}, **columns)
    copies, kinds = _copies(look, tables, limit)
    found.copies = CopyRows(**copies, pid=_constant(copies, pid), names=kinds)
    if CALLS in tables and calls:
        most = None if limit is None else _CALLS_A_KERNEL * limit
        look.start_ns -= look_back_ns
        columns = look.columns(CALLS, _API, most, thread=True)
        found.api = ApiRows(pid=_constant(columns, pid), names={}, **columns)
    if look.cut:
        # A later table may have been cut earlier.
        found = found.until(look.end_ns)
    found.later = np.unique(np.array(look.later, np.int64))
    found.tallies = tuple(look.tallies)
    found.kernels.names = _names(sql, tables, found.kernels.name_id)
    found.api.names = _names(sql, tables, found.api.name_id)
    return found


@dataclass(frozen=True)
class ProcessTotals:
    """All kernels of one process in a file, whatever belongs to a step."""

    kernels: int
    kernel_ns: int
    """Sum of durations."""
    start_ns: int
    end_ns: int


def process_totals(sql: sqlite3.Connection, tables: set[str], process: int) -> ProcessTotals:
    """One look at every row with usable times; ``process`` is ``globalPid >> 24``."""
    if KERNELS not in tables:
        return ProcessTotals(0, 0, 0, 0)
    of = Columns(activity.columns(sql, KERNELS))
    begin, end = of.time("start"), of.time("end")
    mine = f"FROM {KERNELS} WHERE {of.process('globalPid')} = ?"
    # A file of one's own making may begin at 0; a 0 that stands for no time reaches further.
    (first,) = sql.execute(f"SELECT min({begin}) {mine} AND {begin} > 0", (process,)).fetchone()
    row = sql.execute(
        f"SELECT count(*), sum({end} - {begin}), min({begin}), max({end}) {mine}"
        f" AND {of.usable(max(1, int(first or 1)))}",
        (process,),
    ).fetchone()
    return ProcessTotals(*(int(value or 0) for value in row))


@dataclass
class _Look:
    """One process between two times; the end comes nearer when there are too many rows."""

    sql: sqlite3.Connection
    process: int
    start_ns: int
    end_ns: int
    advance: Advance
    cut: bool = False
    asked_ns: int = field(init=False)
    """The end that was asked for."""
    later: list[int] = field(default_factory=list)
    """Correlations of work behind it."""
    tallies: list[Tally] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.asked_ns = self.end_ns

    def columns(
        self, table: str, columns: dict[str, str], limit: int | None, *, thread: bool = False
    ) -> dict[str, Ints]:
        """int64 columns; NULL becomes 0 (no graph node, no correlation), and so does a column that
        the version of nsys that wrote the file did not have."""
        expressions = Columns(activity.columns(self.sql, table))
        if not {"start", "end"} <= expressions.there.keys():
            raise ValueError(f"{table} has no column start or end")
        process = expressions.process("globalTid" if thread else "globalPid")
        usable = expressions.usable(self.start_ns)
        begin, finish = expressions.time("start"), expressions.time("end")
        chosen = ", ".join(
            column if column.lstrip("-").isdigit() else expressions.value(column)
            for column in columns.values()
        )
        stretch = f"FROM {quoted(table)} WHERE rowid >= ? AND rowid <= ?"
        inside = f"{finish} >= ? AND {begin} <= ?"
        query = f"SELECT {chosen} {stretch} AND {process} = ? AND {usable} AND {inside}"
        count_rest = (
            f"SELECT total({process} IS NOT ?1), total({process} IS ?1 AND NOT {usable}),"
            f" total({process} IS ?1 AND {usable} AND NOT ({finish} >= ?2 AND {begin} <= ?3))"
            f" FROM {quoted(table)} WHERE rowid >= ?4 AND rowid <= ?5"
        )
        behind = (
            f"SELECT {expressions.value('correlationId')} {stretch} AND {process} = ?"
            f" AND {usable} AND {begin} > ? AND {begin} <= ?"
        )
        tally = Tally(table)
        self.tallies.append(tally)
        cursor = self.sql.cursor()
        cursor.row_factory = None  # plain tuples: ten million rows need no names
        parts = [np.empty((0, len(columns)), np.int64)]
        held = 0
        for first, last, count in stretches(self.sql, table):
            rows = cursor.execute(query, (first, last, self.process, self.start_ns, self.end_ns))
            before = held
            while chunk := rows.fetchmany(_CHUNK):
                parts.append(np.array(chunk, np.int64))
                held += len(chunk)
            tally.rows += count
            if held - before < count:  # most stretches of a round are read whole
                where = (self.process, self.start_ns, self.asked_ns, first, last)
                elsewhere, unusable, outside = cursor.execute(count_rest, where).fetchone()
                tally.elsewhere += int(elsewhere)
                tally.unusable += int(unusable)
                tally.outside += int(outside)
                if outside and not thread:
                    place = (first, last, self.process, self.asked_ns, self.asked_ns + LATER_NS)
                    self.later += [int(row[0]) for row in cursor.execute(behind, place)]
            if limit is not None and held > limit + limit // 8:
                parts = self._earliest(parts, limit)
                held = sum(map(len, parts))
            self.advance(count)
        if limit is not None and held > limit:
            parts = self._earliest(parts, limit)
        tally.read = held
        tally.cut = tally.rows - tally.elsewhere - tally.unusable - tally.outside - held
        # Column by column: all rows are in memory once, and one column twice.
        order = np.argsort(np.concatenate([part[:, 0] for part in parts]), kind="stable")
        found = {
            name: np.concatenate([part[:, i] for part in parts])[order]
            for i, name in enumerate(columns)
        }
        if "tid" in found:
            found["tid"] &= 0xFFFFFF
        return found

    def unread(self, tables: Sequence[str]) -> dict[str, int]:
        """Table → its rows that may lie in the stretch of time and belong to the process."""
        found = {}
        for table in tables:
            expressions = Columns(activity.columns(self.sql, table))
            there, where = expressions.there.keys(), ["1"]
            if {"start", "end"} <= there:
                where.append(f'("end" >= {self.start_ns} AND start <= {self.end_ns})')
            owner = next((name for name in ("globalPid", "globalTid") if name in there), None)
            if owner is not None:
                where.append(f"{expressions.process(owner)} IN (0, {self.process})")
            query = f"SELECT count(*) FROM {quoted(table)} WHERE {' AND '.join(where)}"
            if count := int(self.sql.execute(query).fetchone()[0]):
                found[table] = count
        return found

    def _earliest(self, parts: list[Ints], limit: int) -> list[Ints]:
        """Rows of the first ``limit`` starts; the end moves to just before the next one."""
        start = np.concatenate([part[:, 0] for part in parts])
        self.end_ns = min(self.end_ns, int(np.partition(start, limit)[limit]) - 1)
        self.cut = True
        return [part[part[:, 0] <= self.end_ns] for part in parts]


def _copies(
    look: _Look, tables: set[str], limit: int | None
) -> tuple[dict[str, Ints], dict[int, str]]:
    """Device work beside the kernels in one order, and the names of kinds without a fixed one."""
    wanted = activity.work_tables(look.sql, tables)
    parts = [
        look.columns(table, _COPY if kind is None else {**_COPY, "kind": str(kind)}, limit)
        for table, kind in wanted.items()
    ]
    names = {
        kind: activity.kind_name(table)
        for table, kind in wanted.items()
        if kind is not None and kind <= activity.OTHER
    }
    if not parts:
        return {name: np.empty(0, np.int64) for name in _COPY}, names
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _COPY}
    order = np.argsort(joined["start_ns"], kind="stable")
    return {name: column[order] for name, column in joined.items()}, names


def _constant(columns: dict[str, Ints], value: int) -> Ints:
    return np.full(len(columns["start_ns"]), value, np.int64)


def _names(sql: sqlite3.Connection, tables: set[str], ids: Ints) -> dict[int, str]:
    wanted: Sequence[int] = np.unique(ids).tolist()
    found: dict[int, str] = {}
    if not tables & {"StringIds"}:
        return {number: f"name {number}" for number in wanted}
    for at in range(0, len(wanted), 500):
        part = wanted[at : at + 500]
        marks = ", ".join("?" * len(part))
        rows = sql.execute(f"SELECT id, value FROM StringIds WHERE id IN ({marks})", part)
        found.update({int(number): str(text) for number, text in rows})
    return {number: found.get(number, f"name {number}") for number in wanted}


_FURTHER = ("dram_write_pct", "l2_pct", "l2_hit_pct", "tensor_pct")
"""Columns of LLMPROF_PM_SAMPLE that older files do not have."""


def read_pm(sql: sqlite3.Connection, round_id: int) -> PmColumns:
    """All PM samples of a round."""
    there = activity.columns(sql, "LLMPROF_PM_SAMPLE")
    further = [name for name in _FURTHER if name in there]
    names = ["dram_pct", "dram_read_pct", "sm_active_pct", *further]
    rows = sql.execute(
        f'SELECT start, "end", {", ".join(names)} FROM LLMPROF_PM_SAMPLE'
        " WHERE round_id = ? ORDER BY start",
        (round_id,),
    ).fetchall()
    times = np.array([(row[0], row[1]) for row in rows], np.int64).reshape(-1, 2)
    values = np.array([tuple(row)[2:] for row in rows], np.float64).reshape(-1, len(names))
    columns = dict(zip(names[3:], values.T[3:], strict=True))
    counted = {name: column for name, column in columns.items() if not np.isnan(column).all()}
    return PmColumns(times[:, 0], times[:, 1], values[:, 0], values[:, 1], values[:, 2], counted)
