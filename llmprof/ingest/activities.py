"""Decoded CUPTI records to rows in nsys' schema, one call a buffer: memory stays flat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.naming.kernel_names import demangle
from llmprof.runfile.schema import global_pid, global_tid
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.cupti.decode import Records
from llmprof.tracers.cupti.layout import DRIVER

Ints = NDArray[np.int64]

MEMORY_KIND = np.array([7, 0, 1, 2, 3, 4, 5, 6], np.int64)
"""CUpti_ActivityMemoryKind (0 unknown, 1 pageable…) → nsys' ENUM_CUDA_MEM_KIND (0 pageable…)."""


_ZERO_IS_NULL = ("graphNodeId",)

RANK_BITS = 16
"""Above the engine's number in a correlation id: engines are few, and the id stays in 63 bits."""


class Clock(Protocol):
    """CUPTI's clock to CLOCK_MONOTONIC (``ClockMap``)."""

    def monotonic(self, cupti_ns: Ints) -> Ints: ...


class Names(Protocol):
    """What pointers and ids in records stand for; both grow while records arrive."""

    @property
    def kernel_names(self) -> Mapping[int, str]: ...
    @property
    def api_names(self) -> Mapping[tuple[int, int], str]: ...


class _Distinct:
    """``np.unique`` with its inverse, for buffers that hold the same few values again and again:
    a binary search among those that are known instead of a sort of each buffer."""

    MOST = 4096

    def __init__(self) -> None:
        self._known: NDArray[np.uint64] = np.zeros(0, np.uint64)

    def of(self, values: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Distinct values, ascending (perhaps some that are not in ``values``); where each is."""
        values = values.astype(np.uint64)
        at = self._find(values)
        new = values if at is None else values[self._known[at] != values]
        if len(new):
            self._known = np.union1d(self._known, new)
            at = self._find(values)
        assert at is not None or not len(values)
        found = self._known
        if len(found) > self.MOST:  # too many to be named again for each buffer
            self._known = np.zeros(0, np.uint64)
            return np.unique(values, return_inverse=True)
        return found, np.zeros(0, np.intp) if at is None else at

    def _find(self, values: NDArray[np.uint64]) -> NDArray[np.intp] | None:
        if not len(self._known):
            return None
        at: NDArray[np.intp] = np.searchsorted(self._known, values)
        return np.minimum(at, len(self._known) - 1)


class ActivityRows:
    """Writes the records of one process.

    Args:
        engine_id: correlation ids are made unique over the file with it (readers join by them).
        pid: process id, or process number (``schema.global_tid``).
        rank: of the processes of one engine.
    """

    def __init__(self, writer: RunFileWriter, engine_id: int, pid: int, rank: int = 0) -> None:
        self._writer = writer
        self._engine_id = engine_id | rank << RANK_BITS
        self._pid = pid
        self._names: dict[tuple[int, str], tuple[int, int, int]] = {}
        self._pointers = _Distinct()
        self._calls = _Distinct()

    def put(self, names: Names, clock: Clock, records: Records) -> None:
        """Raises ``RunFileError``: the run file cannot be written."""
        self._kernels(names, clock, records.kernels)
        self._memcpy(clock, records.memcpy)
        self._memset(clock, records.memset)
        self._api(names, clock, records.api)
        self._sync(clock, records.sync)

    def _common(self, clock: Clock, rows: NDArray[Any]) -> dict[str, Ints]:
        """Columns that every GPU activity has."""
        return {
            "start": clock.monotonic(rows["start"]),
            "end": clock.monotonic(rows["end"]),
            "deviceId": rows["device"],
            "contextId": rows["context"],
            "streamId": rows["stream"],
            "correlationId": self._correlation(rows),
            "globalPid": _same(global_pid(self._pid), rows),
        }

    def _correlation(self, rows: NDArray[Any]) -> NDArray[Any]:
        own: NDArray[Any] = rows["correlation"]
        return own.astype(np.int64) + (self._engine_id << 32) if self._engine_id else own

    def _kernels(self, names: Names, clock: Clock, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        pointers, inverse = self._pointers.of(rows["name_ptr"])
        ids = np.array([self._name(names, int(p)) for p in pointers], np.uint32).T
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
        columns |= {column: rows[name] for column, name in plain.items()}
        for column, its in zip(("demangledName", "shortName", "mangledName"), ids, strict=True):
            columns[column] = its[inverse]
        columns |= _graph_nodes(rows)
        self._writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", columns, _ZERO_IS_NULL)

    def _name(self, names: Names, pointer: int) -> tuple[int, int, int]:
        """String ids of a kernel's demangled, short and mangled name."""
        mangled = names.kernel_names.get(pointer, f"unknown kernel {pointer:#x}")
        key = pointer, mangled  # a module that is loaded anew may reuse an address
        if key not in self._names:
            demangled = demangle(mangled)
            texts = (demangled, base_name(demangled), mangled)
            ids = [self._writer.string_id(text) for text in texts]
            self._names[key] = (ids[0], ids[1], ids[2])
        return self._names[key]

    def _memcpy(self, clock: Clock, rows: NDArray[Any]) -> None:
        if len(rows):
            columns: dict[str, Any] = self._common(clock, rows)
            columns["bytes"] = rows["bytes"].astype(np.int64)
            # CUpti_ActivityMemcpyKind and nsys' ENUM_CUDA_MEMCPY_OPER number alike.
            columns["copyKind"] = rows["copy_kind"]
            columns["srcKind"] = MEMORY_KIND[np.minimum(rows["src_kind"], 7)]
            columns["dstKind"] = MEMORY_KIND[np.minimum(rows["dst_kind"], 7)]
            columns |= _graph_nodes(rows)
            self._writer.bulk("CUPTI_ACTIVITY_KIND_MEMCPY", columns, _ZERO_IS_NULL)

    def _memset(self, clock: Clock, rows: NDArray[Any]) -> None:
        if len(rows):
            columns: dict[str, Any] = self._common(clock, rows)
            columns["value"] = rows["value"]
            columns["bytes"] = rows["bytes"].astype(np.int64)
            columns |= _graph_nodes(rows)
            columns["memKind"] = MEMORY_KIND[np.minimum(rows["memory_kind"], 7)]
            self._writer.bulk("CUPTI_ACTIVITY_KIND_MEMSET", columns, _ZERO_IS_NULL)

    def _api(self, names: Names, clock: Clock, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        keys, inverse = self._calls.of(
            rows["kind"].astype(np.uint64) << np.uint64(32) | rows["cbid"].astype(np.uint64)
        )
        texts = [
            names.api_names.get((int(k) >> 32, int(k) & 0xFFFFFFFF), f"call {int(k)}") for k in keys
        ]
        ids = np.array([self._writer.string_id(text) for text in texts], np.int64)
        self._writer.bulk(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            {
                "start": clock.monotonic(rows["start"]),
                "end": clock.monotonic(rows["end"]),
                "eventClass": (rows["kind"] == DRIVER).view(np.uint8),
                "globalTid": rows["tid"].astype(np.int64) + global_tid(self._pid, 0),
                "correlationId": self._correlation(rows),
                "nameId": ids[inverse],
                "returnValue": rows["return_value"],
            },
        )

    def _sync(self, clock: Clock, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        self._writer.bulk(
            "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION",
            {
                "start": clock.monotonic(rows["start"]),
                "end": clock.monotonic(rows["end"]),
                "deviceId": _same(0, rows),
                "contextId": rows["context"],
                "streamId": rows["stream"],
                "correlationId": self._correlation(rows),
                "globalPid": _same(global_pid(self._pid), rows),
                "syncType": rows["type"],
                "eventId": rows["event"],
            },
        )


def base_name(demangled: str) -> str:
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


def _same(value: int, rows: NDArray[Any]) -> Ints:
    """A column with one value."""
    return np.broadcast_to(np.int64(value), len(rows))


def _graph_nodes(rows: NDArray[Any]) -> dict[str, Any]:
    """nsys has NULL, not 0, for work outside a CUDA graph. SQLite has no unsigned integers."""
    nodes = rows["graph_node"].astype(np.int64)
    return {"graphNodeId": nodes} if nodes.any() else {}
