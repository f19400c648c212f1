"""Reading run files back. All SQL of the analysis lives here, behind named methods."""

from __future__ import annotations

import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line
from llmprof.records import (
    ClockReading,
    CpuUse,
    EngineRecord,
    GpuDevice,
    GpuSample,
    HostFrame,
    HostRound,
    Missing,
    PassName,
    PmRound,
    RoundRecord,
    RunData,
    RunInfo,
    Warned,
)
from llmprof.records.processes import RecordedProcess
from llmprof.runfile import schema
from llmprof.runfile.activity import KERNELS
from llmprof.runfile.codec import RowError, from_column, from_row
from llmprof.runfile.foreign import facts, processes
from llmprof.runfile.foreign.recorded import add_traced_rounds, add_unfinished, sampled_devices
from llmprof.runfile.foreign.source import TORCH, Source, read_source
from llmprof.runfile.foreign.tables import RANGES, read_foreign
from llmprof.runfile.nvtx import OpTotal, self_times
from llmprof.runfile.opening import UNREADABLE, OpenFile, damaged
from llmprof.runfile.trace.chunks import Advance, silent
from llmprof.runfile.trace.host_ranges import recorded_stacks
from llmprof.runfile.trace.host_rows import HostRows, read_samples, together

if TYPE_CHECKING:
    from llmprof.runfile.trace.collective_calls import CollectiveCalls
    from llmprof.runfile.trace.ranges import LaunchRows, RangeRows
    from llmprof.runfile.trace.reader import ProcessTotals
    from llmprof.runfile.trace.rows import Ints, PmColumns, TraceRows

T = TypeVar("T")
LOOK_BACK_NS = 1_000_000_000
"""How long before a stretch its work may have been launched, where llmprof did not drive it."""
FileKind = Literal["llmprof", "nsys", "other"]


class RunFileReader(AbstractContextManager["RunFileReader"]):
    """One run file, read-only. Texts come as they are in the file: untrusted.

    Every method raises ``RunFileError`` on a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        """Open any SQLite file.

        Raises:
            RunFileError: missing, a folder, not SQLite, truncated, or unfit to be read safely.
        """
        self.path = Path(path)
        self._file = OpenFile(self.path)
        self._sql = self._file.sql
        self._sql.row_factory = sqlite3.Row

    def __exit__(self, *_why: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def kind(self) -> FileKind:
        """``nsys``: an export made by Nsight Systems itself (any version)."""
        with self._reading():
            tables = self._tables()
        if "LLMPROF_RUN" in tables:
            return "llmprof"
        if tables & {"META_DATA_EXPORT", "EXPORT_META_DATA", KERNELS, RANGES}:
            return "nsys"  # no reader insists on the version
        return "other"

    def is_llmprof(self) -> bool:
        return self.kind() == "llmprof"

    def ranges(self) -> RangeRows:
        """NVTX ranges of a file that llmprof did not drive."""
        from llmprof.runfile.trace.ranges import read_ranges

        with self._reading():
            return read_ranges(self._sql, self._tables())

    def launches(self) -> LaunchRows:
        """When its processes launched work; of many launches a sample."""
        from llmprof.runfile.trace.ranges import read_launches

        with self._reading():
            return read_launches(self._sql, self._tables())

    def processes(self) -> list[int]:
        """``globalPid >> 24`` of all that the file names; a system-wide capture names hundreds."""
        with self._reading():
            return [*processes.names(self._sql, self._tables())]

    def process_labels(self, wanted: Sequence[int]) -> dict[int, str]:
        """``globalPid >> 24`` → label, each unique among those wanted."""
        with self._reading():
            tables = self._tables()
            devices = processes.devices_of(self._sql, tables)
            numbers = processes.gpu_numbers(self._sql, tables, devices)
            return processes.labels(wanted, processes.names(self._sql, tables), numbers)

    def knows_steps(self) -> bool:
        """Its steps are what llmprof drove. Those of other files are found when it is opened."""
        if self.kind() != "llmprof":
            return self.kind() != "nsys"
        with self._reading():
            rows = self._sql.execute("SELECT * FROM LLMPROF_RUN").fetchall()
        return not any("source" in row.keys() and row["source"] == "recorded" for row in rows)  # noqa: SIM118

    def source(self) -> tuple[Source, int]:
        """Of an export: what it was made of, and the wall clock at its start (0: not known)."""
        with self._reading():
            tables = self._tables()
            return read_source(self._sql, tables), facts.wall_clock(self._sql, tables)

    def run_data(self) -> RunData:
        """All small rows of the run, times in ns since its start (``origin_ns`` 0).

        State ``running``: the recording never said that it ended. It was killed, or goes on.
        An nsys export and a recorded program have one traced round a process, without steps:
        ``analysis.view.opening`` finds them.

        Raises:
            RunFileError: neither a run of llmprof nor an nsys export, or one of a newer version.
        """
        if self.kind() == "nsys":
            with self._reading():
                return read_foreign(self._sql, self._tables(), str(self.path))
        self._require_run()
        with self._reading():
            tables = self._tables()
            infos = self._records(RunInfo, "LLMPROF_RUN")
            if len(infos) != 1:
                raise RowError(f"LLMPROF_RUN has {len(infos)} rows instead of 1")
            logs = self._sql.execute('SELECT label, "text" FROM LLMPROF_LOG ORDER BY rowid')
            data = RunData(
                info=infos[0],
                engines=self._records(EngineRecord, "LLMPROF_ENGINE"),
                rounds=self._rounds(),
                gpu_devices=self._records(GpuDevice, "LLMPROF_GPU_DEVICE"),
                gpu_samples=self._records(GpuSample, "LLMPROF_GPU_SAMPLE"),
                missing=self._records(Missing, "LLMPROF_MISSING"),
                warnings=self._records(Warned, "LLMPROF_WARNING"),
                clocks=self._records(ClockReading, "LLMPROF_CLOCK"),
                processes=self._records(RecordedProcess, "LLMPROF_PROCESS")
                if "LLMPROF_PROCESS" in tables
                else [],
                logs={str(label): str(text) for label, text in logs},
                path=str(self.path),
            )
            if data.info.source == "recorded":
                add_unfinished(self._sql, tables, data)
                add_traced_rounds(data)
            return data

    def nvtx_op_totals(self, engine_id: int, limit: int | None = None) -> list[OpTotal]:
        """Operators of the engine's traced rounds by self time, largest first (``self_times``).

        Empty where no operators were recorded. All threads of the traced process count, so the sum
        may exceed the rounds' duration.
        """
        if self.kind() == "nsys":
            return []
        self._require_run()
        with self._reading():
            if "NVTX_EVENTS" not in self._tables():
                return []
            # (globalTid >> 24) & 0xFFFFFF is the pid.
            rows = self._sql.execute(
                """
                SELECT e.globalTid, e.start, e."end", coalesce(e."text", s.value, '')
                FROM LLMPROF_ROUND AS r
                JOIN NVTX_EVENTS AS e
                  ON (e.globalTid >> 24) & 0xFFFFFF = r.pid & 0xFFFFFF
                 AND e.start >= r.start_ns AND e."end" <= r.end_ns
                LEFT JOIN StringIds AS s ON s.id = e.textId
                WHERE r.engine_id = :engine AND r.pass_name = 'traced' AND e.eventType = :range
                  AND e.domainId IN
                      (SELECT domainId FROM NVTX_EVENTS WHERE eventType = :domain AND "text" = :ops)
                ORDER BY e.globalTid, e.start, e."end" DESC
                """,
                {
                    "engine": engine_id,
                    "range": schema.PUSH_POP,
                    "domain": schema.DOMAIN_CREATE,
                    "ops": schema.OP_DOMAIN,
                },
            )
            totals = self_times(_typed(tuple(row)) for row in rows)
        return totals[:limit]

    def trace_size(self) -> int:
        """About how many rows ``trace_rows`` looks at: no scan."""
        from llmprof.runfile.trace.reader import trace_size

        with self._reading():
            return trace_size(self._sql, self._tables())

    def trace_rows(
        self,
        record: RoundRecord,
        limit: int | None = None,
        advance: Advance = silent,
        calls: bool = True,
    ) -> TraceRows:
        """Kernels, copies and API calls of a round's process from its start to its end, in ns
        since the start of the run; empty columns where nothing was traced.

        Args:
            limit: see ``read_trace``.
            advance: told of rows looked at, ``trace_size`` in all; may raise to stop.
            calls: with API calls.
        """
        from llmprof.runfile.trace.reader import read_trace  # numpy only where it is wanted

        with self._reading():
            try:
                window = record.start_ns, record.end_ns
                tables, pid = self._tables(), record.pid
                back = 0 if record.steps_from == "driven" else LOOK_BACK_NS
                return read_trace(self._sql, tables, pid, window, limit, advance, calls, back)
            except (TypeError, ValueError, OverflowError) as why:
                raise RowError(f"a trace table holds something else than integers: {why}") from None

    def collective_calls(self) -> dict[int, CollectiveCalls]:
        """Process (``globalPid >> 24``) → calls of NCCL that it said the bytes of."""
        from llmprof.runfile.trace.collective_calls import collective_calls

        with self._reading():
            return collective_calls(self._sql, self._tables())

    def work_in(self, records: Sequence[RoundRecord]) -> list[int]:
        """How much device work began in each round of one process (kernels, copies, graphs)."""
        from llmprof.runfile.trace.sharing import count_work

        with self._reading():
            windows = [(r.start_ns, r.end_ns) for r in records]
            tables = self._tables()
            return count_work(self._sql, tables, self._process(records[0].pid, tables), windows)

    def other_processes(self, record: RoundRecord) -> dict[int, tuple[Ints, Ints]]:
        """CUDA's number of a device of the round's process → (start, end) of what other processes
        did on that GPU meanwhile, disjoint, ns."""
        from llmprof.runfile.trace.sharing import other_processes

        with self._reading():
            window, tables = (record.start_ns, record.end_ns), self._tables()
            process = self._process(record.pid, tables)
            return other_processes(self._sql, tables, process, window)

    def end_of_launched(self, pid: int, start_ns: int, end_ns: int) -> int:
        """When the last device work ends that one process launched between two times; ``end_ns``
        where none runs longer. ``pid`` as ``RoundRecord.pid``."""
        from llmprof.runfile.trace.sharing import end_of_launched

        with self._reading():
            tables = self._tables()
            process = self._process(pid, tables)
            return end_of_launched(self._sql, tables, process, (start_ns, end_ns))

    @staticmethod
    def _process(pid: int, tables: set[str]) -> int:
        """``globalPid >> 24``; of a file that llmprof did not make, pid is all of that."""
        return schema.global_pid(pid) >> 24 if "LLMPROF_RUN" in tables else pid

    def process_totals(self, pid: int) -> ProcessTotals:
        """All kernels of a process; ``pid`` as ``RoundRecord.pid``."""
        from llmprof.runfile.trace.reader import process_totals

        with self._reading():
            tables = self._tables()
            return process_totals(self._sql, tables, self._process(pid, tables))

    def sampled_devices(self) -> list[tuple[int, int, int, int]]:
        """(round id, device, begin, end) of stretches in which a GPU's counters were sampled while
        a program was recorded, ns since the start of the run."""
        with self._reading():
            return sampled_devices(self._sql, self._tables())

    def pm_samples(self, round_id: int) -> tuple[PmRound, PmColumns] | None:
        """A sampled round's samples; ``None`` where there are none."""
        from llmprof.runfile.trace.reader import read_pm

        with self._reading():
            if "LLMPROF_PM_ROUND" not in self._tables():
                return None  # written before there was PM sampling
            found = [
                r for r in self._records(PmRound, "LLMPROF_PM_ROUND") if r.round_id == round_id
            ]
            return (found[0], read_pm(self._sql, round_id)) if found else None

    def dram_fit(self, engine_id: int) -> tuple[int, str] | None:
        """Version and document of the fit that the file keeps; ``None`` where there is none."""
        with self._reading():
            if "LLMPROF_DRAM_FIT" not in self._tables():
                return None  # written before fits were kept
            query = 'SELECT version, "document" FROM LLMPROF_DRAM_FIT WHERE engine_id = ?'
            row = self._sql.execute(query, [engine_id]).fetchone()
            kept = row is not None and isinstance(row[0], int) and isinstance(row[1], str)
            return (row[0], row[1]) if kept else None

    def host_rows(self, record: RoundRecord) -> HostRows | None:
        """Host stacks sampled during a traced round; ``None`` where there are none."""
        with self._reading():
            tables = self._tables()
            if not {"LLMPROF_HOST_ROUND", "COMPOSITE_EVENTS", "SAMPLING_CALLCHAINS"} <= tables:
                torch = "LLMPROF_RUN" not in tables and read_source(self._sql, tables).format
                return recorded_stacks(self._sql, tables, record) if torch == TORCH else None
            rounds = self._records(HostRound, "LLMPROF_HOST_ROUND")
            # A recorded program was sampled in stretches: its rounds are made when it is read.
            mine = [
                r
                for r in rounds
                if r.round_id == record.round_id
                or (
                    r.round_id >= schema.HOST_ROUNDS
                    and r.round_id % schema.HOST_ROUNDS == record.engine_id
                )
            ]
            if not mine:
                return None
            frames = {f.frame_id: f for f in self._records(HostFrame, "LLMPROF_HOST_FRAME")}
            samples = read_samples(self._sql, record.pid, record.start_ns, record.end_ns)
            return HostRows(together(mine), frames, samples)

    def _require_run(self) -> None:
        kind, name = self.kind(), one_line(str(self.path))
        if kind == "other":
            with self._reading():
                rocpd = any(table.startswith("rocpd_") for table in self._tables())
            what = (
                "a rocpd database of rocprofv3, which is not read: record with --output-format json"
                if rocpd
                else "an SQLite file, but neither a run of llmprof nor an nsys export"
            )
            raise RunFileError(f"{name}: {what}")
        with self._reading():
            rows = self._sql.execute(
                "SELECT value FROM META_DATA_EXPORT WHERE name = 'LLMPROF_SCHEMA_VERSION'"
            ).fetchall()
            version = str(rows[0][0]) if rows else ""
            if not version.isdecimal():
                raise RowError(f"LLMPROF_SCHEMA_VERSION is {version!r:.20}, not a number")
        if int(version) > schema.SCHEMA_VERSION:
            raise RunFileError(
                f"{name}: written by a newer llmprof (schema {version}, this one reads "
                f"{schema.SCHEMA_VERSION}): update llmprof"
            )

    def _tables(self) -> set[str]:
        rows = self._sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {str(name) for (name,) in rows}

    def _records(self, kind: type[T], table: str) -> list[T]:
        rows = self._sql.execute(f'SELECT * FROM "{table}" ORDER BY rowid')
        try:
            return [from_row(kind, dict(row)) for row in rows]
        except RowError as why:
            raise RowError(f"{table}.{why}") from None
        except KeyError as why:
            raise RowError(f"{table}: no column {why}") from None

    def _rounds(self) -> list[RoundRecord]:
        stamps: defaultdict[Any, array[int]] = defaultdict(lambda: array("q"))
        rows = self._sql.execute(
            "SELECT round_id, step, end_ns FROM LLMPROF_STEP ORDER BY round_id, step"
        )
        for round_id, step, end_ns in rows:
            ends = stamps[round_id]
            if step != len(ends) or type(end_ns) is not int:
                raise RowError(f"LLMPROF_STEP: round {round_id}: step {len(ends)} is missing")
            ends.append(end_ns)
        found = self._sql.execute("SELECT * FROM LLMPROF_ROUND ORDER BY start_ns, round_id")
        return [_round(dict(row), stamps) for row in found]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One consistent view of the file, and one kind of error."""
        try:
            self._sql.execute("BEGIN")
            try:
                yield
            finally:
                self._sql.execute("ROLLBACK")
        except UNREADABLE as why:
            raise damaged(self.path, why) from why
        except RowError as why:
            name = one_line(str(self.path))
            raise RunFileError(f"{name}: damaged: {one_line(str(why))}") from None


def _round(row: dict[str, Any], stamps: defaultdict[Any, array[int]]) -> RoundRecord:
    # By hand: Python before 3.12 cannot evaluate the annotation ``array[int]``.
    types: dict[str, Any] = {
        "round_id": int,
        "engine_id": int,
        "pass_name": PassName,
        "index": int,
        "pid": int,
        "tid": int,
        "start_ns": int,
        "prefill_start_ns": int,
        "end_ns": int,
        "complete": bool,
        "synchronous": bool,
        "tokens": list[list[int]],
        "energy_mj": tuple[int, int] | None,
        "cpu": CpuUse | None,
        "prefill_energy_mj": int | None,
    }
    for name in ("cpu", "prefill_energy_mj"):
        row.setdefault(name, None)  # older files have none
    if lost := types.keys() - row.keys():
        raise RowError(f"LLMPROF_ROUND: no column {', '.join(sorted(lost))}")
    values = {
        name: from_column(kind, row[name], f"LLMPROF_ROUND.{name}") for name, kind in types.items()
    }
    return RoundRecord(**values, stamps_ns=stamps[values["round_id"]])


def _typed(row: tuple[Any, Any, Any, Any]) -> tuple[int, int, int, str]:
    thread, start, end, name = row
    if not (type(thread) is type(start) is type(end) is int):
        raise RowError("NVTX_EVENTS: a time or an id is not an integer")
    return thread, start, end, str(name)
