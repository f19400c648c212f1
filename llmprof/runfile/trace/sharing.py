"""Where a process worked, and when other processes worked on its GPUs: one walk over the tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np

from llmprof.runfile import activity
from llmprof.runfile.activity import KERNELS, Columns
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign.processes import devices_of, gpu_numbers
from llmprof.runfile.trace.chunks import size, stretches
from llmprof.runfile.trace.rows import Ints

Spans = tuple[Ints, Ints]
"""(start, end), disjoint and ascending, ns."""
_CHUNK = 1 << 13
LATER_NS = 1_000_000_000
"""Work may begin so long after its launch; later than that nothing is looked for."""
_SCANNED, _SAMPLED, _PARTS = 4_000_000, 1 << 18, 1 << 10


def other_processes(
    sql: sqlite3.Connection, tables: set[str], process: int, window_ns: tuple[int, int]
) -> dict[int, Spans]:
    """CUDA's number of a device in ``process`` → when any other process worked on that GPU.

    Args:
        process: ``globalPid >> 24``.
    """
    devices = devices_of(sql, tables)
    numbers = gpu_numbers(sql, tables, devices)
    found = {}
    for device in devices.get(process, []):
        gpu = numbers[process, device]
        users = [place for place, number in numbers.items() if number == gpu]
        others = [place for place in users if place[0] != process]
        if others:
            found[device] = _spans(sql, tables, others, window_ns)
    return found


def _spans(
    sql: sqlite3.Connection,
    tables: set[str],
    places: list[tuple[int, int]],
    window_ns: tuple[int, int],
) -> Spans:
    spans = np.empty((0, 2), np.int64)
    for table in (KERNELS, *activity.work_tables(sql, tables)):
        if table not in tables:
            continue
        expressions = Columns(activity.columns(sql, table))
        begin, finish = expressions.time("start"), expressions.time("end")
        owner, device = expressions.process("globalPid"), expressions.value("deviceId")
        where = " OR ".join(f"({owner} = {p} AND {device} = {d})" for p, d in places)
        query = (
            f"SELECT {begin}, {finish} FROM {quoted(table)} WHERE rowid >= ? AND rowid <= ?"
            f" AND ({where}) AND {expressions.usable(window_ns[0])}"
            f" AND {finish} > ? AND {begin} < ?"
        )
        cursor = sql.cursor()
        cursor.row_factory = None
        for first, last, _ in stretches(sql, table):
            rows = cursor.execute(query, (first, last, *window_ns))
            parts = [spans]
            while chunk := rows.fetchmany(_CHUNK):
                parts.append(np.array(chunk, np.int64))
            if len(parts) > 1:
                spans = _merged(np.concatenate(parts))  # at most what is disjoint is held
    return spans[:, 0], spans[:, 1]


def _merged(spans: Ints) -> Ints:
    """The union, as rows (start, end)."""
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(spans[:, 1])
    opens = np.concatenate([[True], spans[1:, 0] > ends[:-1]])
    last = np.append(np.flatnonzero(opens)[1:] - 1, len(spans) - 1)
    return np.stack([spans[opens, 0], ends[last]], axis=1)


def _looked_at(sql: sqlite3.Connection, table: str) -> Iterator[tuple[int, int]]:
    """First and last rowid of the stretches that are looked at."""
    rows = size(sql, table)
    if rows <= _SCANNED:
        yield from ((first, last) for first, last, _ in stretches(sql, table))
        return
    low = int(sql.execute(f"SELECT min(rowid) FROM {quoted(table)}").fetchone()[0])
    for part in range(_PARTS):
        first = low + part * (rows - _SAMPLED // _PARTS) // (_PARTS - 1)
        yield first, first + _SAMPLED // _PARTS - 1


def count_work(
    sql: sqlite3.Connection, tables: set[str], process: int, windows: Sequence[tuple[int, int]]
) -> list[int]:
    """Rows of device work of the process that begin in each stretch of time; of a large table, of
    ``_SAMPLED`` rows all over it."""
    starts = np.array([start for start, _ in windows], np.int64)
    ends = np.array([end for _, end in windows], np.int64)
    counts = np.zeros(len(windows), np.int64)
    for table in (KERNELS, *activity.work_tables(sql, tables)):
        if table not in tables:
            continue
        expressions = Columns(activity.columns(sql, table))
        query = (
            f"SELECT {expressions.time('start')} FROM {quoted(table)} WHERE rowid >= ?"
            f" AND rowid <= ? AND {expressions.process('globalPid')} = ?"
            f" AND {expressions.usable(int(starts.min()))}"
        )
        cursor = sql.cursor()
        cursor.row_factory = None
        for first, last in _looked_at(sql, table):
            rows = cursor.execute(query, (first, last, process)).fetchall()
            begun = np.sort(np.array([row[0] for row in rows], np.int64))
            counts += np.searchsorted(begun, ends) - np.searchsorted(begun, starts)
    return [int(n) for n in counts]


def end_of_launched(
    sql: sqlite3.Connection, tables: set[str], process: int, window_ns: tuple[int, int]
) -> int:
    """The end of the last device work that ``process`` launched in a stretch of time, if it ends
    later than that; work that begins more than ``LATER_NS`` later is not looked at."""
    start, end = window_ns
    if activity.CALLS not in tables:
        return end
    of = Columns(activity.columns(sql, activity.CALLS))
    if not {"start", "correlationId", "globalTid"} <= of.there.keys():
        return end
    calls = (
        f"SELECT correlationId FROM {activity.CALLS} WHERE {of.time('start')} BETWEEN ? AND ?"
        f" AND {of.process('globalTid')} = ?"
    )
    latest = end
    for table in (KERNELS, *activity.work_tables(sql, tables)):
        if table not in tables:
            continue
        of = Columns(activity.columns(sql, table))
        if not {"start", "end", "correlationId"} <= of.there.keys():
            continue
        (found,) = sql.execute(
            f"SELECT max({of.time('end')}) FROM {quoted(table)}"
            f" WHERE {of.process('globalPid')} = ? AND {of.usable(start)} AND {of.time('end')} > ?"
            f" AND {of.time('start')} BETWEEN ? AND ? AND correlationId IN ({calls})",
            (process, end, start, end + LATER_NS, start, end, process),
        ).fetchone()
        latest = max(latest, int(found or 0))
    return latest
