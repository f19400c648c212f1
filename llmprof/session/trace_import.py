"""From a worker's spool of raw CUPTI buffers to rows of the run file, one buffer at a time.

Memory stays flat whatever the trace's length: a buffer is decoded, written and forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.kernel_names import demangle
from llmprof.plaintext import one_line
from llmprof.records import ClockReading, Unavailable
from llmprof.runfile.schema import global_pid, global_tid
from llmprof.runfile.writer import RunFileWriter
from llmprof.tracers.cupti.decode import ClockMap, Records, Trace
from llmprof.tracers.cupti.layout import DRIVER

Ints = NDArray[np.int64]

MEMORY_KIND = np.array([7, 0, 1, 2, 3, 4, 5, 6], np.int64)
"""CUpti_ActivityMemoryKind (0 unknown, 1 pageable…) → nsys' ENUM_CUDA_MEM_KIND (0 pageable…)."""


@dataclass
class Imported:
    """What came out of one round's trace."""

    kernels: int = 0
    copies: int = 0
    api: int = 0
    lost: list[str] = field(default_factory=list)
    error_ns: int = 0
    """Bound on the distance between CUPTI's and the monotonic clock."""


class TraceImport:
    """Writes the traced round of one worker.

    Args:
        engine_id: correlation ids are made unique over the file with it (readers join by them).
    """

    def __init__(self, writer: RunFileWriter, engine_id: int, pid: int) -> None:
        self._writer = writer
        self._engine_id = engine_id
        self._pid = pid
        self._names: dict[int, tuple[int, int, int]] = {}

    def round(self, path: Path, round_id: int) -> Imported | Unavailable:
        """Decode and write everything that belongs to ``round_id``.

        Raises:
            RunFileError: the run file cannot be written.
        """
        try:
            trace = Trace(path)
        except OSError as why:
            return Unavailable(f"no trace: {why.strerror}")
        try:
            clock = trace.clock(round_id)
            if isinstance(clock, Unavailable):
                return clock
            if isinstance(trace.layout, Unavailable):
                return trace.layout
            self._put_clocks(clock)
            done = Imported(error_ns=clock.error_ns)
            for records in trace.records(round_id):
                self._kernels(trace, clock, records.kernels)
                self._memcpy(clock, records.memcpy)
                self._memset(clock, records.memset)
                self._api(trace, clock, records.api)
                self._sync(clock, records.sync)
                done.kernels += len(records.kernels)
                done.copies += len(records.memcpy) + len(records.memset)
                done.api += len(records.api)
                _note_other(records, done)
            done.lost += [one_line(text) for text in trace.lost]
            return done
        finally:
            trace.close()

    def _put_clocks(self, clock: ClockMap) -> None:
        for mark in (clock.begin, clock.end):
            self._writer.put_clock(
                ClockReading(
                    engine_id=self._engine_id,
                    round_id=mark.round_id,
                    where=mark.where,
                    monotonic_ns=mark.monotonic_ns,
                    wall_ns=mark.wall_ns,
                    cupti_ns=mark.cupti_ns,
                    error_ns=mark.error_ns,
                )
            )

    def _common(self, clock: ClockMap, rows: NDArray[Any]) -> dict[str, Ints]:
        """Columns that every GPU activity has."""
        count = len(rows)
        return {
            "start": clock.monotonic(rows["start"].astype(np.int64)),
            "end": clock.monotonic(rows["end"].astype(np.int64)),
            "deviceId": rows["device"].astype(np.int64),
            "contextId": rows["context"].astype(np.int64),
            "streamId": rows["stream"].astype(np.int64),
            "correlationId": self._correlation(rows),
            "globalPid": np.full(count, global_pid(self._pid), np.int64),
        }

    def _correlation(self, rows: NDArray[Any]) -> Ints:
        return rows["correlation"].astype(np.int64) + (self._engine_id << 32)

    def _kernels(self, trace: Trace, clock: ClockMap, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        pointers, inverse = np.unique(rows["name_ptr"], return_inverse=True)
        names = np.array([self._name(trace, int(p)) for p in pointers], np.int64)[inverse]
        plain = {
            "registersPerThread": "registers",
            "gridX": "grid_x",
            "gridY": "grid_y",
            "gridZ": "grid_z",
            "blockX": "block_x",
            "blockY": "block_y",
            "blockZ": "block_z",
            "staticSharedMemory": "static_shared",
            "dynamicSharedMemory": "dynamic_shared",
            "localMemoryPerThread": "local_per_thread",
            "localMemoryTotal": "local_total",
            "gridId": "grid_id",
            "launchType": "launch_type",
            "sharedMemoryExecuted": "shared_executed",
            "graphId": "graph",
        }
        columns: dict[str, Any] = self._common(clock, rows)
        columns |= {column: rows[name].astype(np.int64) for column, name in plain.items()}
        columns |= dict(zip(("demangledName", "shortName", "mangledName"), names.T, strict=True))
        columns |= _graph_nodes(rows)
        self._writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", columns)

    def _name(self, trace: Trace, pointer: int) -> tuple[int, int, int]:
        """String ids of a kernel's demangled, short and mangled name."""
        if pointer not in self._names:
            mangled = trace.kernel_names.get(pointer, f"unknown kernel {pointer:#x}")
            demangled = demangle(mangled)
            texts = (demangled, _base_name(demangled), mangled)
            ids = [self._writer.string_id(text) for text in texts]
            self._names[pointer] = (ids[0], ids[1], ids[2])
        return self._names[pointer]

    def _memcpy(self, clock: ClockMap, rows: NDArray[Any]) -> None:
        if len(rows):
            columns: dict[str, Any] = self._common(clock, rows)
            columns["bytes"] = rows["bytes"].astype(np.int64)
            # CUpti_ActivityMemcpyKind and nsys' ENUM_CUDA_MEMCPY_OPER number alike.
            columns["copyKind"] = rows["copy_kind"].astype(np.int64)
            columns["srcKind"] = MEMORY_KIND[np.minimum(rows["src_kind"], 7)]
            columns["dstKind"] = MEMORY_KIND[np.minimum(rows["dst_kind"], 7)]
            columns |= _graph_nodes(rows)
            self._writer.bulk("CUPTI_ACTIVITY_KIND_MEMCPY", columns)

    def _memset(self, clock: ClockMap, rows: NDArray[Any]) -> None:
        if len(rows):
            columns: dict[str, Any] = self._common(clock, rows)
            columns["value"] = rows["value"].astype(np.int64)
            columns["bytes"] = rows["bytes"].astype(np.int64)
            columns |= _graph_nodes(rows)
            columns["memKind"] = MEMORY_KIND[np.minimum(rows["memory_kind"], 7)]
            self._writer.bulk("CUPTI_ACTIVITY_KIND_MEMSET", columns)

    def _api(self, trace: Trace, clock: ClockMap, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        keys, inverse = np.unique(
            rows["kind"].astype(np.int64) << 32 | rows["cbid"].astype(np.int64),
            return_inverse=True,
        )
        names = [
            trace.api_names.get((int(k) >> 32, int(k) & 0xFFFFFFFF), f"call {int(k)}") for k in keys
        ]
        ids = np.array([self._writer.string_id(name) for name in names], np.int64)
        self._writer.bulk(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            {
                "start": clock.monotonic(rows["start"].astype(np.int64)),
                "end": clock.monotonic(rows["end"].astype(np.int64)),
                "eventClass": (rows["kind"] == DRIVER).astype(np.int64),
                "globalTid": rows["tid"].astype(np.int64) + global_tid(self._pid, 0),
                "correlationId": self._correlation(rows),
                "nameId": ids[inverse],
                "returnValue": rows["return_value"].astype(np.int64),
            },
        )

    def _sync(self, clock: ClockMap, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        count = len(rows)
        self._writer.bulk(
            "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION",
            {
                "start": clock.monotonic(rows["start"].astype(np.int64)),
                "end": clock.monotonic(rows["end"].astype(np.int64)),
                "deviceId": np.zeros(count, np.int64),
                "contextId": rows["context"].astype(np.int64),
                "streamId": rows["stream"].astype(np.int64),
                "correlationId": self._correlation(rows),
                "globalPid": np.full(count, global_pid(self._pid), np.int64),
                "syncType": rows["type"].astype(np.int64),
                "eventId": rows["event"].astype(np.int64),
            },
        )


def _base_name(demangled: str) -> str:
    """nsys' ``shortName``: the function's own name without namespace, template and parameters."""
    depth, kept = 0, []
    for sign in demangled.replace("(anonymous namespace)", ""):
        if sign == "(" and depth == 0:
            break
        depth += (sign == "<") - (sign == ">")
        if depth == 0 and sign != ">":
            kept.append(sign)
    words = "".join(kept).split()
    return words[-1].rpartition("::")[2] if words else demangled


def _graph_nodes(rows: NDArray[Any]) -> dict[str, Any]:
    """nsys has NULL, not 0, for work outside a CUDA graph. SQLite has no unsigned integers."""
    nodes = rows["graph_node"].astype(np.int64)
    if not nodes.any():
        return {}
    return {"graphNodeId": nodes if nodes.all() else [n or None for n in nodes.tolist()]}


def _note_other(records: Records, done: Imported) -> None:
    for kind, count in records.other.items():
        done.lost.append(f"{count} records of kind {kind} are not read")
