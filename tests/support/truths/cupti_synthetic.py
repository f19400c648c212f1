"""Activity buffers as CUPTI writes them, with totals that are known by construction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import record_dtype
from llmprof.tracers.cupti.layout import (
    API_FIELDS,
    CONCURRENT_KERNEL,
    DRIVER,
    KERNEL,
    KERNEL_FIELDS,
    MEMCPY,
    MEMCPY_FIELDS,
    MEMSET,
    MEMSET_FIELDS,
    RUNTIME,
    SYNC_FIELDS,
    SYNCHRONIZATION,
    Field,
    Layout,
    known_layout,
)

FIELDS: dict[int, tuple[Field, ...]] = {
    MEMCPY: MEMCPY_FIELDS,
    MEMSET: MEMSET_FIELDS,
    KERNEL: KERNEL_FIELDS,
    CONCURRENT_KERNEL: KERNEL_FIELDS,
    DRIVER: API_FIELDS,
    RUNTIME: API_FIELDS,
    SYNCHRONIZATION: SYNC_FIELDS,
}
NAME_POINTERS = (0x7F00_0000_1000, 0x7F00_0000_1080, 0x7F00_0000_2000)
T0 = 1_795_390_354_287_184_548
"""A real CUPTI time: ns since the epoch, 61 bits."""

CUDA_13_0 = 130001
CUDA_12_6 = 24
CUDA_13_5 = 130500


def layout_of(version: int) -> Layout:
    layout = known_layout(version)
    assert layout is not None
    return layout


def make_buffer(kinds: Sequence[int], layout: Layout, start: int = T0) -> bytes:
    """One record for each entry of ``kinds``.

    Record i starts at ``start + 1000 i`` and takes ``100 + i % 7`` ns; its correlation id is i + 1.
    Grid and block are (3, 1, 1) and (128, 1, 1) as in real life, so that every kernel record holds
    words that look like the start of a copy (kind 1).
    """
    wanted = np.asarray(kinds, np.int64)
    sizes = np.array([layout.sizes[int(kind)] for kind in wanted], np.int64)
    ends = np.cumsum(sizes)
    data = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for kind in np.unique(wanted):
        number = np.flatnonzero(wanted == kind)
        size = layout.sizes[int(kind)]
        rows = np.zeros(len(number), record_dtype(FIELDS[int(kind)], size))
        rows["kind"] = kind
        rows["start"] = start + 1000 * number
        rows["end"] = rows["start"] + 100 + number % 7
        rows["correlation"] = number + 1
        for name, value in _values(int(kind), number).items():
            rows[name] = value
        at = (ends - sizes)[number][:, None] + np.arange(size)
        data[at] = rows.view(np.uint8).reshape(-1, size)
    return data.tobytes()


def _values(kind: int, number: Any) -> dict[str, Any]:
    if kind in (KERNEL, CONCURRENT_KERNEL):
        return {
            "context": 1,
            "stream": 1 + number % 10,
            "grid_x": 3,
            "grid_y": 1,
            "grid_z": 1,
            "block_x": 128,
            "block_y": 1,
            "block_z": 1,
            "registers": 32,
            "name_ptr": np.array(NAME_POINTERS, np.uint64)[number % len(NAME_POINTERS)],
            "graph_node": number % 2,
        }
    if kind in (DRIVER, RUNTIME):
        return {"cbid": 211 if kind == RUNTIME else 307, "pid": 5, "tid": 10}
    if kind == SYNCHRONIZATION:
        return {"type": 3, "stream": 7, "event": 2**32 - 1}
    extra = {"copy_kind": 1} if kind == MEMCPY else {"value": 0}
    return {"bytes": 4096 + number, "stream": 7, **extra}


def write_spool(
    path: Path, buffers: Sequence[bytes], layout: Layout, round_id: int = 1, drift_ns: int = 0
) -> None:
    """A finished round, as a worker writes it. CUPTI's second runs ``drift_ns`` ahead."""
    writer = spool.SpoolWriter(path)
    writer.write_json(spool.LAYOUT, {**layout.to_dict(), "level": "full", "pid": 5, "library": "x"})
    clock = {"round": round_id, "wall_ns": T0, "error_ns": 300}
    begin = {"where": "begin", "monotonic_ns": 1_000, "cupti_ns": T0, "dropped": 0}
    writer.write_json(spool.MARK, {**clock, **begin})
    for buffer in buffers:
        writer.write(spool.RECORDS, buffer)
    end = {"monotonic_ns": 1_000 + 10**9, "cupti_ns": T0 + 10**9 + drift_ns, "dropped": 0}
    writer.write_json(spool.MARK, {**clock, "where": "end", **end})
    names = {str(pointer): f"_Z{i}kernelv" for i, pointer in enumerate(NAME_POINTERS)}
    api = {"5": {"211": "cudaLaunchKernel_v7000"}, "4": {"307": "cuLaunchKernel"}}
    writer.write_json(spool.NAMES, json.loads(json.dumps({"kernels": names, "api": api})))
    writer.close()
