"""Copies of run files for other programs: one file as it is, or several on one time axis."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line
from llmprof.runfile import schema
from llmprof.runfile.activity import KERNELS
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign.source import SOURCE_FILE
from llmprof.runfile.foreign.tables import columns_of
from llmprof.runfile.locks import writable
from llmprof.runfile.opening import OpenFile, damaged

Share = Callable[[float], None]

_STRINGS = {"demangledName", "shortName", "mangledName", "nameId", "textId", "jsonTextId", "symbol",
            "module"}  # fmt: skip
"""Columns that hold a StringIds id."""
_IDS = {"globalPid", "globalTid", "endGlobalTid", "globalVid"}
_TIMES = {
    "DIAGNOSTIC_EVENT": ("timestamp",),
    "GPU_METRICS": ("timestamp",),
    "COMPOSITE_EVENTS": ("start",),
    "SCHED_EVENTS": ("start",),
    "ANALYSIS_DETAILS": (),
}
"""Where times are not in ``start`` and ``end``."""
_HAS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name ="
_STACKS = ("COMPOSITE_EVENTS", "SAMPLING_CALLCHAINS")
"""Whose ``id`` is a sample's."""
_CORRELATION_BITS = 44
"""Of a run's own ids: llmprof numbers engine << 32 | correlation."""


def copy_file(source: Path, target: Path, share: Share = lambda _: None) -> None:
    """A consistent copy without journal or WAL; the source may be being written.

    Raises:
        RunFileError: the source cannot be read, the target cannot be written.
    """
    file = OpenFile(source)
    try:
        with closing(writable(target)) as copy:
            file.sql.backup(
                copy, pages=8192, progress=lambda _, left, all_: share(1 - left / max(1, all_))
            )
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
            if copy.execute(f"{_HAS} 'META_DATA_EXPORT'").fetchone():
                # Of a converted trace: the copy is a file of its own now.
                with copy:
                    copy.execute("DELETE FROM META_DATA_EXPORT WHERE name = ?", [SOURCE_FILE])
    except sqlite3.Error as why:
        raise (_unwritten(target, why) if "full" in str(why) else damaged(source, why)) from why
    finally:
        file.close()


def merge_files(sources: Sequence[Path], target: Path, share: Share = lambda _: None) -> None:
    """All nsys tables of several runs on the time axis of the one that began first.

    Process ids that two runs share are told apart by their hardware id (the top byte of
    ``globalPid``), correlation ids by their top bits, stacks by numbering on. The LLMPROF_* tables,
    which describe one run, are left out: llmprof opens the result as it opens any export.

    Raises:
        RunFileError: a source cannot be read or says no wall clock, the target cannot be written.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(closing(OpenFile(path))) for path in sources]
        begins = [_wall_clock(file.sql, path) for file, path in zip(files, sources, strict=True)]
        try:
            sql = stack.enter_context(closing(writable(target)))
            sql.execute("PRAGMA journal_mode = OFF").fetchall()
            sql.execute("PRAGMA synchronous = OFF")
            sql.execute("BEGIN")
            hardware: set[int] = set()
            for number, (file, path) in enumerate(zip(files, sources, strict=True)):
                shift = begins[number] - min(begins)
                _add(sql, file.sql, path, number, shift, hardware)
                share((number + 1) / len(files))
            sql.execute("COMMIT")
        except sqlite3.Error as why:
            raise _unwritten(target, why) from why


def _unwritten(target: Path, why: sqlite3.Error) -> RunFileError:
    name = one_line(target.name.removeprefix(".").removesuffix(".part"))
    return RunFileError(f"{name}: cannot be written: {why}; free space or use -o elsewhere")


def _wall_clock(sql: sqlite3.Connection, path: Path) -> int:
    try:
        row = sql.execute("SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME").fetchone()
    except sqlite3.Error:
        row = None
    if row is None or type(row[0]) is not int:
        name = one_line(str(path))
        raise RunFileError(f"{name}: says no wall clock time: it cannot be merged with others")
    return int(row[0])


def _add(
    sql: sqlite3.Connection,
    source: sqlite3.Connection,
    path: Path,
    number: int,
    shift_ns: int,
    taken: set[int],
) -> None:
    """All rows of one source."""
    known = schema.statements()
    try:
        rows = source.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = [str(n) for (n,) in rows if n in known and not str(n).startswith("LLMPROF_")]
        hardware = _free_hardware(source, tables, path, taken)
        stacks = _highest_stack(sql) + 1
        strings = _strings(sql, source) if "StringIds" in tables else {}
        for table in tables:
            if table != "StringIds":
                _copy_table(sql, source, table, number, shift_ns, hardware, strings, stacks)
    except sqlite3.Error as why:
        if "full" in str(why):
            raise  # the target's trouble, not the source's
        raise damaged(path, why) from why


def _free_hardware(
    source: sqlite3.Connection, tables: list[str], path: Path, taken: set[int]
) -> int:
    """What to add to every process id of a source, so that none of them is in another one.

    Whole hardware ids are moved, for a merged file may hold several already.
    """
    mine = {0}
    for table in ("PROCESSES", KERNELS):
        if table in tables and "globalPid" in columns_of(source, table):
            rows = source.execute(f"SELECT DISTINCT globalPid >> 56 FROM {table}")
            mine |= {int(row[0]) for row in rows if type(row[0]) is int}
    shift = next((n for n in range(128) if not {h + n for h in mine} & taken), 128)
    if max(mine) + shift > 127 or min(mine) < 0:
        raise RunFileError(f"{one_line(str(path))}: too many processes to be told apart")
    taken |= {h + shift for h in mine}
    return shift << 56


def _highest_stack(sql: sqlite3.Connection) -> int:
    """Of the samples that were copied so far; -1 without any."""
    highest = -1
    for table in _STACKS:
        if sql.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            found = sql.execute(f"SELECT coalesce(max(id), -1) FROM {table}").fetchone()
            highest = max(highest, int(found[0]))
    return highest


def _strings(sql: sqlite3.Connection, source: sqlite3.Connection) -> dict[int, int]:
    """Old id → new id; equal texts get one id, since reports group by it."""
    _require(sql, "StringIds")
    there = {value: key for key, value in sql.execute("SELECT id, value FROM StringIds")}
    moved, new = {}, []
    for key, value in source.execute("SELECT id, value FROM StringIds"):
        if value not in there:
            there[value] = len(there) + 1
            new.append((there[value], value))
        moved[key] = there[value]
    sql.executemany("INSERT INTO StringIds (id, value) VALUES (?, ?)", new)
    return moved


def _require(sql: sqlite3.Connection, table: str) -> bool:
    """True if the table was made now."""
    if sql.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        return False
    for statement in schema.statements()[table]:
        sql.execute(statement)
    return True


def _copy_table(
    sql: sqlite3.Connection,
    source: sqlite3.Connection,
    table: str,
    number: int,
    shift_ns: int,
    hardware: int,
    strings: dict[int, int],
    stacks: int,
) -> None:
    _require(sql, table)
    ours = [row[1] for row in sql.execute(f"PRAGMA table_info({quoted(table)})")]
    theirs = {row[1] for row in source.execute(f"PRAGMA table_info({quoted(table)})")}
    columns = [c for c in ours if c in theirs]
    times = _TIMES.get(table, ("start", "end"))
    once = table.startswith("ENUM_") or (
        number and table in ("META_DATA_EXPORT", "META_DATA_CAPTURE", "ANALYSIS_DETAILS",
                             "TARGET_INFO_SESSION_START_TIME")
    )  # fmt: skip
    if once and number:
        if table == "ANALYSIS_DETAILS":
            sql.execute(
                "UPDATE ANALYSIS_DETAILS SET duration = max(duration, ?), stopTime = startTime"
                " + max(duration, ?)",
                [source.execute("SELECT max(duration) FROM ANALYSIS_DETAILS").fetchone()[0]
                 + shift_ns] * 2,
            )  # fmt: skip
        return
    if table.startswith("ENUM_"):
        return  # comes with its rows
    chosen = []
    for column in columns:
        name = quoted(column)
        if column in times:
            name = f"{name} + {int(shift_ns)}"
        elif column in _IDS:
            name = f"{name} + {int(hardware)}"
        elif column == "id" and table in _STACKS:
            name = f"{name} + {int(stacks)}"
        elif column == "correlationId":
            name = f"{name} + {number << _CORRELATION_BITS}"
        chosen.append(name)
    wanted = f"SELECT {', '.join(chosen)} FROM {quoted(table)}"
    if table == "META_DATA_EXPORT":
        wanted += " WHERE name NOT LIKE 'LLMPROF%'"
    rename = [i for i, c in enumerate(columns) if c in _STRINGS]
    marks = ", ".join("?" * len(columns))
    verb = "INSERT OR IGNORE" if table.startswith("GENERIC_") else "INSERT"
    insert = f"{verb} INTO {quoted(table)} ({', '.join(map(quoted, columns))}) VALUES ({marks})"
    rows = source.execute(wanted)
    while chunk := rows.fetchmany(1 << 15):
        if rename:
            mapped = [list(row) for row in chunk]
            for row in mapped:
                for i in rename:
                    row[i] = strings.get(row[i], row[i])
            sql.executemany(insert, mapped)
        else:
            sql.executemany(insert, chunk)
