"""The only writer of run files. One transaction a call, or a ``batch`` of calls: all that it wrote
is there, or nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llmprof.records import (
    ClockReading,
    EngineRecord,
    GpuDevice,
    GpuSample,
    HostFrame,
    HostRound,
    Missing,
    NvtxEvent,
    PmRound,
    RoundRecord,
    RunInfo,
    RunState,
    Warned,
)
from llmprof.records.processes import RecordedProcess
from llmprof.runfile import schema
from llmprof.runfile.codec import clean, to_column, to_row
from llmprof.runfile.database import RunDatabase, quoted
from llmprof.runfile.nvtx import round_ranges
from llmprof.runfile.writing import gpus
from llmprof.runfile.writing.heading import heading_rows

if TYPE_CHECKING:
    import numpy as np

    Column = Sequence[Any] | np.ndarray[Any, Any]

_CHUNK = 65536
"""Rows that ``bulk`` turns into Python values at a time."""
_TIMES = ("start", "end")
_METRIC = "INSERT INTO GPU_METRICS (timestamp, typeId, metricId, value) VALUES (?, ?, ?, ?)"
_INFO, _WARNING = 1, 2
"""``DIAGNOSTIC_EVENT.severity``."""


_NOT_WRITTEN = ("stamps_ns", "steps_from", "labels", "other_tids")


class RunFileWriter(AbstractContextManager["RunFileWriter"]):
    """Creates a run file and adds to it.

    Records carry absolute CLOCK_MONOTONIC; the file gets ns since ``info.t0_ns``. To be used from
    one thread, the session's.

    Every method raises ``RunFileError`` when the file can't be written (disk full, I/O error). The
    call that failed has then left nothing; what was there before is kept, and the file opens.
    """

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        """Create the file.

        Raises:
            RunFileError: it exists and is not empty, its folder is missing or can't be written.
        """
        self.path = Path(path)
        self._t0_ns = info.t0_ns
        self._domains: dict[str, int] = {"": 0}  # domain 0 is NVTX' default and has no row
        self._engines: dict[int, EngineRecord] = {}
        self._devices: list[GpuDevice] = []
        self._db = RunDatabase(self.path, unmarked=info.source == "recorded")
        try:
            with self._db.transaction():
                self._db.check_ours()
                self._create(info)
        except BaseException:
            self._db.abandon()
            raise

    def __exit__(self, *_why: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything is committed already; a second close does nothing."""
        self._db.close()

    @property
    def t0_ns(self) -> int:
        return self._t0_ns

    def put_engine(self, engine: EngineRecord) -> None:
        """Insert the engine, or overwrite it (same ``engine_id``)."""
        with self._db.transaction():
            self._db.insert("LLMPROF_ENGINE", [to_row(engine)], or_replace=True)
            for pid in (engine.pid, engine.traced_pid):
                if pid is not None:
                    self._name_process(pid, engine.label)
            for one in engine.traced_ranks[1:]:
                self._name_process(one.pid, f"{engine.label} rank {one.rank}")
            engines = {**self._engines, engine.engine_id: replace(engine)}
            self._put_cuda_devices(engines, self._devices)
        self._engines = engines

    def put_round(self, record: RoundRecord) -> None:
        """The round, its steps, and NVTX ranges made from its stamps.

        Raises:
            ValueError: its engine was never put.
        """
        engine = self._engines.get(record.engine_id)
        if engine is None:
            raise ValueError(f"round of engine {record.engine_id}, which was never put")
        t0 = self._t0_ns
        # What stretches of a recording are steps is found when it is opened, and not kept.
        kept = [f.name for f in fields(record) if f.name not in _NOT_WRITTEN]
        row = {name: getattr(record, name) for name in kept}
        for name in ("start_ns", "prefill_start_ns", "end_ns"):
            row[name] -= t0
        starts = [record.prefill_start_ns, *record.stamps_ns]
        with self._db.transaction():
            self._db.insert("LLMPROF_ROUND", [{k: to_column(v) for k, v in row.items()}])
            self._db.sql.executemany(
                "INSERT INTO LLMPROF_STEP (round_id, step, start_ns, end_ns) VALUES (?, ?, ?, ?)",
                (
                    (record.round_id, i, starts[i] - t0, end - t0)
                    for i, end in enumerate(record.stamps_ns)
                ),
            )
            self._name_process(record.pid, engine.label)
            self._put_ranges(round_ranges(record))
            self._seen(record.end_ns)
            self._db.written.rounds += 1

    def put_nvtx(self, events: Sequence[NvtxEvent]) -> None:
        """Push/pop ranges of any domain; operators go to ``schema.OP_DOMAIN``."""
        if events:
            with self._db.transaction():
                self._put_ranges(events)

    def put_gpu_devices(self, devices: Sequence[GpuDevice]) -> None:
        """The machine's GPUs; a second call replaces the first one's."""
        with self._db.transaction():
            self._db.replace_all("LLMPROF_GPU_DEVICE", [to_row(d) for d in devices])
            self._db.replace_all("TARGET_INFO_GPU", [gpus.device_row(d) for d in devices])
            self._put_cuda_devices(self._engines, devices)
        self._devices = list(devices)

    def put_gpu_samples(self, samples: Sequence[GpuSample]) -> None:
        """NVML samples, exact in LLMPROF_GPU_SAMPLE and rounded in GPU_METRICS."""
        if not samples:
            return
        rows = [to_row(s) for s in samples]
        for row, sample in zip(rows, samples, strict=True):
            row["timestamp_ns"] = sample.timestamp_ns - self._t0_ns
        with self._db.transaction():
            self._db.insert("LLMPROF_GPU_SAMPLE", rows)
            for device in sorted({s.device for s in samples}):
                self._name_metrics(device, gpus.SOURCE_ID)
            self._db.require("GPU_METRICS")
            self._db.sql.executemany(_METRIC, gpus.metric_rows(samples, self._t0_ns))
            self._seen(max(s.timestamp_ns for s in samples))

    def put_missing(self, missing: Sequence[Missing]) -> None:
        with self._db.transaction():
            self._db.insert("LLMPROF_MISSING", [to_row(m) for m in missing])
            for m in missing:
                self._diagnose(_INFO, f"{m.scope}: {m.name} is not available: {m.reason}")

    def put_warning(self, warning: Warned) -> None:
        with self._db.transaction():
            self._db.insert("LLMPROF_WARNING", [to_row(warning)])
            self._diagnose(_WARNING, f"{warning.scope}: {warning.text}")

    def put_clock(self, reading: ClockReading) -> None:
        row = to_row(reading)
        row["monotonic_ns"] = reading.monotonic_ns - self._t0_ns
        with self._db.transaction():
            self._db.insert("LLMPROF_CLOCK", [row])

    def put_pm_round(self, sampled: PmRound, samples: Mapping[str, Column]) -> None:
        """A sampled round: exact in LLMPROF_PM_SAMPLE and rounded in GPU_METRICS.

        Args:
            samples: ``start`` and ``end`` (absolute CLOCK_MONOTONIC ns), ``dram_pct``,
                ``dram_read_pct``, ``sm_active_pct``; equally long.
        """
        count = len(samples["start"])
        with self._db.transaction():
            self._db.insert("LLMPROF_PM_ROUND", [to_row(sampled)])
            if count:
                self._name_metrics(sampled.device, gpus.PM_SOURCE_ID)
                self._db.require("GPU_METRICS")
                rows = gpus.pm_metric_rows(sampled.device, samples["start"], samples, self._t0_ns)
                self._db.sql.executemany(_METRIC, rows)
        self.bulk("LLMPROF_PM_SAMPLE", {"round_id": [sampled.round_id] * count, **samples})

    def put_dram_fit(self, engine_id: int, version: int, document: str) -> None:
        """The fit of an engine's sampled rounds, or overwrite it (same ``engine_id``)."""
        row = {"engine_id": engine_id, "version": version, "document": document}
        with self._db.transaction():
            self._db.insert("LLMPROF_DRAM_FIT", [row], or_replace=True)

    def put_host_round(self, sampled: HostRound, frames: Sequence[HostFrame]) -> None:
        """Facts about sampled host stacks, and frames not put before; the samples come by
        ``bulk``. A frame's id is the ``string_id`` of its symbol."""
        row = to_row(sampled)
        for name in ("first_ns", "last_ns"):
            row[name] = getattr(sampled, name) - self._t0_ns
        with self._db.transaction():
            self._db.insert("LLMPROF_HOST_ROUND", [row])
        self.put_host_frames(frames)

    def put_host_frames(self, frames: Sequence[HostFrame]) -> None:
        """Frames of sampled stacks, or overwrite them (same ``frame_id``)."""
        with self._db.transaction():
            self._db.insert("LLMPROF_HOST_FRAME", [to_row(f) for f in frames], or_replace=True)

    def put_process(self, process: RecordedProcess) -> None:
        """Insert what is known of a recorded process, or overwrite it (same ``process``)."""
        row = to_row(process)
        for name in ("first_ns", "last_ns", "started_ns"):
            row[name] = getattr(process, name) - self._t0_ns
        with self._db.transaction():
            self._db.require("LLMPROF_PROCESS")
            self._db.insert("LLMPROF_PROCESS", [row], or_replace=True)
            self._name_process(process.process, process.label)

    def put_log(self, label: str, text: str) -> None:
        """The tail of a worker's log; a second one for the same label replaces the first."""
        row = {"label": clean(label), "text": clean(text)}
        with self._db.transaction():
            self._db.insert("LLMPROF_LOG", [row], or_replace=True)

    def set_state(
        self,
        state: RunState,
        message: str = "",
        *,
        schedule: str | None = None,
        workload: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
    ) -> None:
        """How the run stands; ``None`` leaves a field as it is."""
        values = {
            "state": state,
            "message": message,
            "schedule": schedule,
            "workload": workload,
            "environment": environment,
        }
        changed = {k: to_column(v) for k, v in values.items() if v is not None}
        assignments = ", ".join(f"{quoted(k)} = :{k}" for k in changed)
        with self._db.transaction():
            self._db.sql.execute(f"UPDATE LLMPROF_RUN SET {assignments}", changed)

    def string_id(self, text: str) -> int:
        """The id of ``text`` in StringIds. Written with the next call that writes rows."""
        return self._db.string_id(text)

    def batch(self) -> AbstractContextManager[None]:
        """What is written within is one transaction, which is opened with the first call that
        writes. A call that fails takes back all of it."""
        return self._db.batch()

    def bulk(
        self,
        table: schema.BulkTable,
        columns: Mapping[str, Column],
        zero_is_null: Collection[str] = (),
    ) -> None:
        """Many rows of one table, column by column: lists or one-dimensional numpy arrays.

        ``start`` and ``end`` are absolute CLOCK_MONOTONIC ns, as everywhere. Columns left out are
        NULL, and 0 in those of ``zero_is_null``. Arrays of integers are the fast way
        (``RunDatabase.insert_columns``, ``benchmarks/insert_kernels.py``).

        Raises:
            ValueError: unknown table or column, a required column left out, unequal lengths.
        """
        if table not in get_args(schema.BulkTable):
            raise ValueError(f"{table}: not a bulk table")
        lengths = {len(c) for c in columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"{table}: columns of unequal length, or none")
        (total,) = lengths
        if not total:
            return
        with self._db.transaction():
            self._db.require(table)
            self._db.check_columns(table, set(columns))
            for at in range(0, total, _CHUNK):
                parts = {n: c[at : at + _CHUNK] for n, c in columns.items()}
                fixed = {n: v for n, c in parts.items() if (v := _constant(n, c)) is not None}
                bound = {n: self._values(n, c) for n, c in parts.items() if n not in fixed}
                count = min(_CHUNK, total - at)
                self._db.insert_columns(table, bound, fixed, count, zero_is_null)

    # What follows runs inside a transaction of one of the calls above.

    def _create(self, info: RunInfo) -> None:
        for table in schema.always_present():
            self._db.require(table)
        self._db.insert("LLMPROF_RUN", [to_row(info)])
        for table, rows in heading_rows(info).items():
            self._db.insert(table, rows)

    def _name_process(self, pid: int, label: str) -> None:
        if self._db.written.processes.get(pid) == label:
            return
        row = {
            "globalPid": schema.global_pid(pid),
            "pid": pid & 0xFFFFFF,
            "name": clean(f"llmprof:{label}"),
        }
        self._db.sql.execute("DELETE FROM PROCESSES WHERE globalPid = ?", (row["globalPid"],))
        self._db.insert("PROCESSES", [row])
        self._db.written.processes[pid] = label

    def _put_ranges(self, events: Sequence[NvtxEvent]) -> None:
        self._db.require("NVTX_EVENTS")
        t0, tids = self._t0_ns, {}
        for pid, tid in {(e.pid, e.tid) for e in events}:
            tids[pid, tid] = schema.global_tid(pid, tid)
            self._name_thread(pid, tids[pid, tid])
        for domain, pid in sorted({(e.domain, e.pid) for e in events} - self._db.written.domains):
            start = min(e.start_ns for e in events if (e.domain, e.pid) == (domain, pid))
            self._name_domain(domain, pid, start - t0)
        # Text inline and endGlobalTid NULL: otherwise some readers lose the range.
        self._db.sql.executemany(
            'INSERT INTO NVTX_EVENTS (start, "end", eventType, "text", globalTid, domainId,'
            f" jsonText) VALUES (?, ?, {schema.PUSH_POP}, ?, ?, ?, ?)",
            (
                (
                    e.start_ns - t0,
                    e.end_ns - t0,
                    clean(e.text),
                    tids[e.pid, e.tid],
                    self._domains[e.domain],
                    clean(e.values) if e.values else None,
                )
                for e in events
            ),
        )
        self._seen(max(e.end_ns for e in events))

    def _name_domain(self, domain: str, pid: int, start: int) -> None:
        """Readers look for a domain's name among the events of its process."""
        number = self._domains.setdefault(domain, len(self._domains))
        if number:
            row = {
                "start": start,
                "eventType": schema.DOMAIN_CREATE,
                "text": clean(domain),
                "globalTid": schema.global_pid(pid),
                "domainId": number,
            }
            self._db.insert("NVTX_EVENTS", [row])
        self._db.written.domains.add((domain, pid))

    def _name_thread(self, pid: int, global_tid: int) -> None:
        label = self._db.written.processes.get(pid)
        if label is not None and global_tid not in self._db.written.threads:
            row = {"nameId": self._db.string_id(f"llmprof:{label}"), "globalTid": global_tid}
            self._db.insert("ThreadNames", [row])
            self._db.written.threads.add(global_tid)

    def _name_metrics(self, device: int, source: int) -> None:
        known = self._db.written.metric_types
        if (device, source) in known:
            return
        if source not in {s for _, s in known}:
            name = "NVML" if source == gpus.SOURCE_ID else "PM sampling"
            row = {"sourceId": source, "data": json.dumps({"Name": name})}
            self._db.insert("GENERIC_EVENT_SOURCES", [row])
        for table, rows in gpus.metric_type_rows(device, source).items():
            self._db.insert(table, rows)
        known.add((device, source))

    def _diagnose(self, severity: int, text: str) -> None:
        """What nsys shows on its page "Diagnostics"."""
        row = {
            "timestamp": self._db.written.stop_ns,
            "timestampType": 1,  # the target's clock
            "source": 2,  # the process that recorded
            "severity": severity,
            "text": clean(text),
        }
        self._db.insert("DIAGNOSTIC_EVENT", [row])

    def _put_cuda_devices(
        self, engines: Mapping[int, EngineRecord], devices: Sequence[GpuDevice]
    ) -> None:
        """One row a GPU for each process of an engine that runs on CUDA."""
        pids = {
            pid
            for e in engines.values()
            if e.info is not None and e.info.device.startswith("cuda")
            for pid in (e.pid, e.traced_pid, *(one.pid for one in e.traced_ranks))
            if pid is not None
        }
        rows = gpus.cuda_device_rows(devices, sorted(pids))
        self._db.replace_all("TARGET_INFO_CUDA_DEVICE", rows)

    def _values(self, name: str, part: Any) -> Any:
        """One chunk of one column: integers of numpy or Python values (sqlite3 binds no others)."""
        if name in _TIMES:
            self._seen(int(max(part) if not hasattr(part, "max") else part.max()))
            if hasattr(part, "dtype"):
                part = part - self._t0_ns
            else:
                part = [value - self._t0_ns for value in part]
        if getattr(getattr(part, "dtype", None), "kind", "") in ("i", "u"):
            return part
        return part.tolist() if hasattr(part, "tolist") else list(part)

    def _seen(self, absolute_ns: int) -> None:
        self._db.written.stop_ns = max(self._db.written.stop_ns, absolute_ns - self._t0_ns)


def _constant(name: str, part: Any) -> int | None:
    """The value of an integer numpy column that has only one; ``None`` otherwise."""
    if name in _TIMES or not hasattr(part, "dtype") or part.dtype.kind not in "iu":
        return None
    first = part[0]
    if first != part[-1] or (part.strides[0] and not (part == first).all()):
        return None
    return int(first)
