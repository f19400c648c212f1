"""What ran and what was sampled in the rounds of one engine: the input of the fit."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.kernel_fit import Samples
from llmprof.analysis.device.sweep import COPY_NAMES
from llmprof.records import RoundRecord
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import PmColumns, TraceRows

Ints = NDArray[np.int64]
Dim = tuple[int, int, int]

MAX_KERNELS = 1_000_000
READ, WRITE = "dram_read_pct", "dram_write_pct"
FURTHER = (READ, "sm_active_pct", WRITE, "l2_pct", "l2_hit_pct", "tensor_pct")


@dataclass(frozen=True, eq=False)
class DeviceWork:
    """What ran in all sampled rounds, in order, with a key for name and launch shape."""

    start: Ints
    end: Ints
    key: Ints
    names: tuple[str, ...]
    """Of each key."""
    shapes: tuple[tuple[Dim, Dim] | None, ...]


def traced(reader: RunFileReader, rounds: Sequence[RoundRecord]) -> tuple[list[TraceRows], int]:
    """Work of all these rounds' processes, and up to when none of it is missing.

    Neighbouring rounds are read in one go: each reading goes through the whole table.
    """
    found: list[TraceRows] = []
    left = MAX_KERNELS
    for mine in _neighbours(rounds):
        whole = replace(mine[0], end_ns=mine[-1].end_ns)
        rows = reader.trace_rows(whole, left, calls=False)
        found.append(rows)
        left -= len(rows.kernels)
        if rows.complete_ns is not None or left <= 0:
            return found, mine[-1].end_ns if rows.complete_ns is None else rows.complete_ns
    return found, max((r.end_ns for r in rounds), default=0)


def _neighbours(rounds: Sequence[RoundRecord]) -> list[list[RoundRecord]]:
    """Of one process, without a pause as long as a round: samples of a recorded program may be a
    minute apart."""
    found: list[list[RoundRecord]] = []
    for record in rounds:
        last = found[-1][-1] if found else None
        if last is not None and last.pid == record.pid:
            pause = record.start_ns - last.end_ns
            if 0 <= pause <= last.end_ns - last.start_ns:
                found[-1].append(record)
                continue
        found.append([record])
    return found


def device_work(rounds: Sequence[TraceRows], index: int) -> DeviceWork:
    starts, ends, columns = [], [], []
    names: dict[str, int] = {}
    for rows in rounds:
        k, c = rows.kernels, rows.copies
        # CUPTI and PM sampling count devices alike, as the process sees them.
        mine = k.device == index if (k.device == index).any() else np.ones(len(k), bool)
        number = np.zeros(int(k.name_id.max(initial=0)) + 1, np.int64)
        for name_id, name in k.names.items():
            number[name_id] = names.setdefault(name, len(names))
        grid = (k.grid_x, k.grid_y, k.grid_z, k.block_x, k.block_y, k.block_z)
        columns.append(np.column_stack((number[k.name_id], *grid))[mine])
        kinds = [COPY_NAMES.get(kind, COPY_NAMES[0]) for kind in c.kind.tolist()]
        copied = np.array([names.setdefault(kind, len(names)) for kind in kinds], np.int64)
        columns.append(np.column_stack((copied, *[np.zeros_like(copied)] * 6)))
        starts += [k.start_ns[mine], c.start_ns]
        ends += [k.end_ns[mine], c.end_ns]
    start, end = np.concatenate(starts), np.concatenate(ends)
    table, key = np.unique(np.concatenate(columns), axis=0, return_inverse=True)
    order = np.argsort(start, kind="stable")
    text = list(names)
    shapes = [tuple(int(v) for v in row[1:]) for row in table]
    return DeviceWork(
        start[order],
        end[order],
        key[order].astype(np.int64),
        tuple(text[int(row[0])] for row in table),
        tuple(((s[0], s[1], s[2]), (s[3], s[4], s[5])) if any(s) else None for s in shapes),
    )


def until(record: RoundRecord, end_ns: int) -> RoundRecord:
    """With the steps that end by then."""
    stamps = [t for t in record.stamps_ns if t <= end_ns]
    return (
        record
        if len(stamps) == len(record.stamps_ns)
        else replace(record, stamps_ns=array("q", stamps))
    )


def samples_of(rounds: Sequence[tuple[RoundRecord, PmColumns]]) -> tuple[Samples, tuple[str, ...]]:
    """Samples that lie inside decode steps, and the further counters that every round has."""
    tables = []
    for _, pm in rounds:
        further = {READ: pm.dram_read_pct, "sm_active_pct": pm.sm_active_pct, **pm.further}
        tables.append({k: v for k, v in further.items() if not np.isnan(v).any()})
    counted = tuple(name for name in FURTHER if all(name in table for table in tables))
    starts: list[Ints] = []
    ends: list[Ints] = []
    values: list[NDArray[np.float64]] = []
    numbers: list[Ints] = []
    others: list[NDArray[np.float64]] = []
    for (record, pm), table in zip(rounds, tables, strict=True):
        inside = (pm.start_ns >= record.stamps_ns[0]) & (pm.end_ns <= record.stamps_ns[-1])
        inside &= ~np.isnan(pm.dram_pct)
        if not inside.any():
            continue
        starts.append(pm.start_ns[inside])
        ends.append(pm.end_ns[inside])
        values.append(pm.dram_pct[inside])
        numbers.append(np.full(int(inside.sum()), len(numbers), np.int64))
        stack = [table[name][inside] for name in counted]
        others.append(np.column_stack(stack) if stack else np.empty((int(inside.sum()), 0)))
    if not starts:
        nothing = np.empty(0, np.int64)
        return Samples(nothing, nothing, np.empty(0), nothing, np.empty((0, 0))), counted
    return Samples(
        np.concatenate(starts),
        np.concatenate(ends),
        np.concatenate(values),
        np.concatenate(numbers),
        np.concatenate(others),
    ), counted
