"""NVTX ranges of an export of Nsight Systems, and the calls that launch work, as columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmprof.runfile import activity
from llmprof.runfile.activity import CALLS, KERNELS, Columns
from llmprof.runfile.codec import RowError
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign.tables import columns_of, int_of, last_row, range_table
from llmprof.runfile.schema import GPU_DOMAIN, HOST_DOMAINS
from llmprof.runfile.trace.rows import Ints

MAX_RANGES = 1_000_000
"""Ranges looked at; more than that are operators, not steps."""
SAMPLE, STRETCH = 200_000, 2_000
"""Calls looked at in a long table, in stretches of so many rows all over it."""
_RANGE_TYPES = (59, 60, 70, 71)
"""Push/pop and start/end, of NVTX and of text imports."""


@dataclass(frozen=True, eq=False)
class RangeRows:
    """One row a range that has ended, ordered by start and, of those that begin together, the
    longest first. int64, equally long."""

    start_ns: Ints
    end_ns: Ints
    process: Ints
    """``globalTid >> 24``: hardware, virtual machine and process id in one number."""
    tid: Ints
    text: Ints
    """Index into ``texts``."""
    texts: tuple[tuple[str, str], ...]
    """(domain, text), both untrusted."""
    cut: bool
    """There were more than ``MAX_RANGES``."""

    def __len__(self) -> int:
        return len(self.start_ns)

    def of(self, processes: Sequence[int]) -> RangeRows:
        """Those of some processes."""
        mine = np.isin(self.process, processes)
        return replace(
            self,
            start_ns=self.start_ns[mine],
            end_ns=self.end_ns[mine],
            process=self.process[mine],
            tid=self.tid[mine],
            text=self.text[mine],
        )


@dataclass(frozen=True, eq=False)
class LaunchRows:
    """When work was launched; of many calls a sample. Without calls, when kernels began."""

    start_ns: Ints
    process: Ints


def read_ranges(sql: sqlite3.Connection, tables: set[str]) -> RangeRows:
    """All ranges of the file, at most ``MAX_RANGES``."""
    found: list[tuple[int, int, int, int]] = []
    names: list[tuple[str, str]] = []
    table = range_table(tables)
    if table is not None:
        for start, end, text, tid, domain in _rows(sql, tables, table):
            if type(start) is int and type(end) is int and text:
                found.append((start, end, int_of(tid) >> 24, int_of(tid) & 0xFFFFFF))
                names.append((domain, str(text)))
    # The same ranges again, as torch.profiler drew them over a stream.
    of_host = [n for n, (domain, _) in enumerate(names) if domain != GPU_DOMAIN]
    if 0 < len(of_host) < len(names):
        found, names = [found[n] for n in of_host], [names[n] for n in of_host]
    return range_rows(found, names)


def range_rows(
    rows: Sequence[tuple[int, int, int, int]], names: Sequence[tuple[str, str]]
) -> RangeRows:
    """Columns of ranges in any order.

    Args:
        rows: (start, end, process, thread).
        names: (domain, text) of each.
    """
    texts: dict[tuple[str, str], int] = {}
    number = np.array([texts.setdefault(name, len(texts)) for name in names], np.int64)
    table = np.array(rows, np.int64).reshape(-1, 4)
    order = np.lexsort((-table[:, 1], table[:, 0]))
    start, end, process, thread = table[order].T
    cut = len(rows) >= MAX_RANGES
    return RangeRows(start, end, process, thread, number[order], tuple(texts), cut)


def _rows(
    sql: sqlite3.Connection, tables: set[str], table: str
) -> Iterator[tuple[Any, Any, Any, Any, str]]:
    there = columns_of(sql, table)
    if not {"start", "end", "eventType"} <= there:
        raise RowError(f"{table}: no column start, end or eventType")
    when = Columns(activity.columns(sql, table))
    begin, finish = when.time("start"), when.time("end")
    text = 'e."text"' if "text" in there else "NULL"
    join = ""
    if {"textId"} <= there and "StringIds" in tables:
        text, join = f"coalesce({text}, s.value)", "LEFT JOIN StringIds AS s ON s.id = e.textId"
    thread = "e.globalTid" if "globalTid" in there else "0"
    domain = "e.domainId" if "domainId" in there else "0"
    names: dict[tuple[int, int], str] = {}
    if {"text", "domainId"} <= there:
        rows = sql.execute(
            f'SELECT {thread}, e.domainId, e."text" FROM {quoted(table)} AS e WHERE eventType = 75'
        )
        names = {(int_of(t) >> 24, d): str(name) for t, d, name in rows}
    types = ", ".join(map(str, _RANGE_TYPES))
    # Operators and Python functions: too many to be looked at, and never the steps.
    calls = {number for _, number in names} - {
        number for (_, number), name in names.items() if name not in HOST_DOMAINS
    }
    skipped = ", ".join(str(number) for number in sorted(map(int_of, calls))) or "-1"
    rows = sql.execute(
        f"SELECT {begin}, {finish}, {text}, coalesce({thread}, 0), {domain}"
        f" FROM {quoted(table)} AS e {join}"
        f' WHERE e.eventType IN ({types}) AND e."end" >= e.start'
        f" AND coalesce({domain}, 0) NOT IN ({skipped}) LIMIT {MAX_RANGES}"
    )
    for start, end, name, tid, number in rows:
        yield start, end, name, tid, names.get((int_of(tid) >> 24, number), "")


def read_launches(sql: sqlite3.Connection, tables: set[str]) -> LaunchRows:
    """Calls that launch work, or else the begins of work on the device."""
    if CALLS in tables and "StringIds" in tables:
        of = Columns(activity.columns(sql, CALLS))
        if {"start", "nameId", "globalTid"} <= of.there.keys():
            query = (
                f"SELECT {of.time('start')}, {of.process('globalTid')} FROM {CALLS}"
                " WHERE {where} AND nameId IN"
                " (SELECT id FROM StringIds WHERE value LIKE '%Launch%')"
            )
            found = _sample(sql, query, last_row(sql, tables, CALLS))
            if len(found):
                return LaunchRows(found[:, 0], found[:, 1])
    for table in (KERNELS, activity.GRAPHS):
        of = Columns(activity.columns(sql, table)) if table in tables else Columns({})
        if "start" in of.there:
            query = (
                f"SELECT {of.time('start')}, {of.process('globalPid')} FROM {quoted(table)}"
                " WHERE {where}"
            )
            found = _sample(sql, query, last_row(sql, tables, table))
            if len(found):
                return LaunchRows(found[:, 0], found[:, 1])
    none = np.empty(0, np.int64)
    return LaunchRows(none, none)


def _sample(sql: sqlite3.Connection, query: str, total: int) -> Ints:
    rows: list[tuple[int, int]] = []
    if total <= SAMPLE:
        rows += sql.execute(query.format(where="1")).fetchall()
    else:
        parts = SAMPLE // STRETCH
        for part in range(parts):
            first = 1 + part * (total - STRETCH) // (parts - 1)
            where = f"rowid BETWEEN {first} AND {first + STRETCH - 1}"
            rows += sql.execute(query.format(where=where)).fetchall()
    plain = [(int_of(row[0]), int_of(row[1])) for row in rows]
    found = np.array(plain, np.int64).reshape(-1, 2)
    return found[np.argsort(found[:, 0], kind="stable")]
