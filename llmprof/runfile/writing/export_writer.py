"""Writes an SQLite file in Nsight Systems' export schema from rows of another profiler.

Nothing of llmprof's own is in it but what ``foreign.source`` reads: which format and which files
the rows came from, and what was wrong with them. It opens as any export does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmprof.plaintext import one_line
from llmprof.records import GpuDevice
from llmprof.runfile import schema
from llmprof.runfile.codec import clean
from llmprof.runfile.database import RunDatabase, quoted
from llmprof.runfile.foreign.source import Source, facts
from llmprof.runfile.writing import gpus

_ROWS = 1 << 13
"""Of one table that are held before they are written."""
KERNEL, COPY, SET, CALL, RANGE = (
    "CUPTI_ACTIVITY_KIND_KERNEL",
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "CUPTI_ACTIVITY_KIND_MEMSET",
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    "NVTX_EVENTS",
)
SYNC = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"
_PLACE = ("start", "end", "deviceId", "contextId", "streamId", "correlationId", "globalPid")
COLUMNS: dict[str, tuple[str, ...]] = {
    KERNEL: (
        *_PLACE, "demangledName", "shortName", "gridX", "gridY", "gridZ", "blockX", "blockY",
        "blockZ", "registersPerThread", "dynamicSharedMemory", "graphNodeId", "graphId",
        "collectiveBytes",
    ),
    COPY: (*_PLACE, "bytes", "copyKind", "srcKind", "dstKind", "graphNodeId"),
    SET: (*_PLACE, "bytes", "graphNodeId"),
    SYNC: (*_PLACE, "syncType"),
    CALL: ("start", "end", "eventClass", "globalTid", "correlationId", "nameId"),
    RANGE: ("start", "end", "eventType", "globalTid", "textId", "domainId"),
}  # fmt: skip
"""What a row of ``add`` holds, in this order."""
_FIXED: dict[str, dict[str, int]] = {
    KERNEL: {"localMemoryPerThread": 0, "localMemoryTotal": 0, "gridId": 0, "launchType": 1,
             "staticSharedMemory": 0},
    SET: {"value": 0},
    SYNC: {"eventId": 0},
    CALL: {"returnValue": 0},
}  # fmt: skip


class ExportWriter:
    """One new file, written in one transaction: it is there whole, or not at all.

    Times may be on any clock; ``finish`` moves them. Ids in rows are ``schema.global_tid``'s.
    """

    def __init__(self, path: Path) -> None:
        """Create it.

        Raises:
            RunFileError: it exists and is not empty, its folder is missing or can't be written.
        """
        self._db = RunDatabase(path, unmarked=True)
        # Nobody sees the file before it is finished, so nothing has to be undone.
        self._db.sql.execute("PRAGMA journal_mode = OFF").fetchall()
        self._db.sql.execute("PRAGMA synchronous = OFF")
        self._held: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
        self._rows = dict.fromkeys(COLUMNS, 0)

    @contextmanager
    def writing(self) -> Iterator[ExportWriter]:
        """All of it; an error leaves nothing.

        Raises:
            RunFileError: disk full, I/O error.
        """
        try:
            with self._db.transaction():
                self._db.check_ours()
                for table in schema.always_present():
                    if not table.startswith("LLMPROF_"):
                        self._db.require(table)
                yield self
        except BaseException:
            self._db.abandon()
            raise
        self._db.close()

    def string(self, text: str) -> int:
        return self._db.string_id(text)

    def texts(self) -> list[str]:
        """All texts so far."""
        return self._db.texts()

    def rename(self, names: dict[str, str]) -> None:
        """Texts that have a better form; their ids stay."""
        self._db.rename(names)

    def add(self, table: str, row: tuple[Any, ...]) -> None:
        """A row in the order of ``COLUMNS``."""
        held = self._held[table]
        held.append(row)
        if len(held) >= _ROWS:
            self._flush(table)

    def rows_of(self, table: str) -> int:
        """How many were added; a table without any is not there."""
        return self._rows[table] + len(self._held[table])

    def _flush(self, table: str) -> None:
        held = self._held[table]
        if held:
            self._db.require(table)
            bound = dict(zip(COLUMNS[table], zip(*held, strict=True), strict=True))
            self._db.insert_columns(table, bound, _FIXED.get(table, {}), len(held))
            self._rows[table] += len(held)
            held.clear()

    def domain(self, name: str, number: int, process: int) -> None:
        """Name an NVTX domain of a process (``globalPid``)."""
        row = {"start": 0, "eventType": schema.DOMAIN_CREATE, "text": clean(name),
               "globalTid": process, "domainId": number}  # fmt: skip
        self._db.insert(RANGE, [row])

    def process(self, process: int, name: str) -> None:
        pid = process >> 24 & 0xFFFFFF
        row = {"globalPid": process, "pid": pid, "name": clean(name)}
        self._db.insert("PROCESSES", [row])

    def thread(self, thread: int, name: str) -> None:
        row = {"nameId": self.string(name), "globalTid": thread}
        self._db.insert("ThreadNames", [row])

    def devices(self, devices: Sequence[GpuDevice], processes: Sequence[int]) -> None:
        pids = [process >> 24 & 0xFFFFFF for process in processes]
        self._db.insert("TARGET_INFO_GPU", [gpus.device_row(d) for d in devices])
        self._db.insert("TARGET_INFO_CUDA_DEVICE", gpus.cuda_device_rows(devices, pids))

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement on what was added; only texts of llmprof's own code."""
        for table in COLUMNS:
            self._flush(table)
        return self._db.sql.execute(statement, values).fetchall()

    def execute_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._db.sql.executemany(statement, rows)

    def finish(
        self,
        source: Source,
        origin_ns: int,
        utc_ns: int,
        process: int,
        warnings: Sequence[str] = (),
    ) -> None:
        """Move all times so that ``origin_ns`` is 1 µs; give device work of no process one.

        Not 0: a reader takes that for a time that is not there.

        Args:
            origin_ns: the first of all times.
            utc_ns: wall clock at ``origin_ns``; 0: not known.
            process: ``globalPid`` of device rows that have none.
            warnings: what was wrong with the file.
        """
        origin_ns, utc_ns = origin_ns - 1000, utc_ns and utc_ns - 1000
        for table, columns in COLUMNS.items():
            self._flush(table)
            if not self._rows[table]:
                continue
            changes = [f'start = start - {int(origin_ns)}, "end" = "end" - {int(origin_ns)}']
            if "globalPid" in columns:
                changes.append(f"globalPid = coalesce(globalPid, {int(process)})")
            self._db.sql.execute(
                f"UPDATE {quoted(table)} SET {', '.join(changes)}"
                + (f" WHERE eventType <> {schema.DOMAIN_CREATE}" if table == RANGE else "")
            )
        last = [
            self._db.sql.execute(f'SELECT max("end") FROM {quoted(t)}').fetchone()[0]
            for t in COLUMNS
            if self._rows[t]
        ]
        duration = max((int(value) for value in last if value is not None), default=0)
        version = [str(n) for n in schema.NSYS_SCHEMA]
        meta = [
            ("EXPORT_PRODUCT_NAME", source.format),
            ("EXPORT_PRODUCT_VERSION", source.version),
            ("EXPORT_SCHEMA_VERSION", ".".join(version)),
            ("EXPORT_SCHEMA_VERSION_MAJOR", version[0]),
            ("EXPORT_SCHEMA_VERSION_MINOR", version[1]),
            ("EXPORT_SCHEMA_VERSION_MICRO", version[2]),
            *facts(source),
        ]
        self._db.insert("META_DATA_EXPORT", [{"name": k, "value": clean(v)} for k, v in meta])
        self._db.insert("TARGET_INFO_SESSION_START_TIME", [{"utcEpochNs": utc_ns}])
        self._db.insert(
            "ANALYSIS_DETAILS",
            [{"globalVid": schema.VM, "duration": duration, "startTime": 0, "stopTime": duration}],
        )
        for text in warnings:
            row = {"timestamp": 0, "timestampType": 1, "source": 3, "severity": 2,
                   "text": clean(one_line(text, 300))}  # fmt: skip
            self._db.insert("DIAGNOSTIC_EVENT", [row])


def set_source(path: Path, source: Source) -> None:
    """Say what a merged file was made of.

    Raises:
        RunFileError: it cannot be written.
    """
    import sqlite3
    from contextlib import closing

    from llmprof.errors import RunFileError

    try:
        with closing(sqlite3.connect(path)) as sql, sql:
            sql.executemany("INSERT INTO META_DATA_EXPORT VALUES (?, ?)", facts(source))
    except sqlite3.Error as why:
        raise RunFileError(f"{one_line(str(path))}: cannot be written: {why}") from None
