"""Processes of an export: what each is called, which GPUs it used, which of them others use too.

A kernel's ``deviceId`` is CUDA's number within its process, so two processes with
CUDA_VISIBLE_DEVICES both have a device 0. TARGET_INFO_CUDA_DEVICE says which GPU that is.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from llmprof.plaintext import one_line, shortened
from llmprof.runfile import activity
from llmprof.runfile.activity import KERNELS, Columns
from llmprof.runfile.database import quoted

LABEL_LIMIT = 40
_SCANNED = 500_000
"""Rows of a table up to which all of them are asked for their process and device."""
_SAMPLED = 1024

Device = tuple[int, int]
"""Process (``globalPid >> 24``), CUDA's number of the device in it."""


def devices_of(sql: sqlite3.Connection, tables: set[str]) -> dict[int, list[int]]:
    """Process → devices that any work of it ran on, both ascending.

    Work of any sort counts: a process may have nothing but whole CUDA graphs, or copies. In a large
    table rows all over it are asked, since a scan takes seconds.
    """
    found: set[Device] = set()
    for table in (KERNELS, *activity.work_tables(sql, tables)):
        if table not in tables:
            continue
        expressions = Columns(activity.columns(sql, table))
        low, high = sql.execute(f"SELECT min(rowid), max(rowid) FROM {quoted(table)}").fetchone()
        where = ""
        if high is not None and high - low > _SCANNED:
            chosen = (low + i * (high - low) // (_SAMPLED - 1) for i in range(_SAMPLED))
            where = f" WHERE rowid IN ({', '.join(map(str, chosen))})"
        rows = sql.execute(
            f"SELECT DISTINCT {expressions.process('globalPid')}, {expressions.value('deviceId')}"
            f" FROM {quoted(table)}{where}"
        )
        found.update((_int(process), _int(device)) for process, device in rows)
    devices: dict[int, list[int]] = {}
    for process, device in sorted(found):
        devices.setdefault(process, []).append(device)
    return devices


def work_span(sql: sqlite3.Connection, tables: set[str]) -> tuple[int, int] | None:
    """From about the first start to about the last end of any work, by the rows at both ends of
    each table."""
    edge = 2000
    starts, ends = [], []
    for table in (KERNELS, *activity.work_tables(sql, tables)):
        if table not in tables:
            continue
        expressions = Columns(activity.columns(sql, table))
        if not {"start", "end"} <= expressions.there.keys():
            continue
        low, high = sql.execute(f"SELECT min(rowid), max(rowid) FROM {quoted(table)}").fetchone()
        if high is None:
            continue
        begin, finish = expressions.time("start"), expressions.time("end")
        row = sql.execute(
            f"SELECT min(CASE WHEN {begin} <> 0 THEN {begin} END), max({finish}),"
            f" max(CASE WHEN {begin} = 0 THEN {finish} END)"
            f" FROM {quoted(table)} WHERE (rowid <= ? OR rowid > ?) AND {expressions.usable(0)}",
            (low + edge, high - edge),
        ).fetchone()
        if row[0] is not None:
            # A start of 0 is a time only where its row ends before all others.
            from_zero = row[2] is not None and 0 < row[2] <= row[0]
            starts.append(0 if from_zero else _int(row[0]))
            ends.append(_int(row[1]))
    return (min(starts), max(ends)) if starts else None


def gpu_numbers(
    sql: sqlite3.Connection, tables: set[str], devices: Mapping[int, Sequence[int]]
) -> dict[Device, int]:
    """Which GPU each process' device is; without a table that says so, the one of that number."""
    known: dict[Device, int] = {}
    if "TARGET_INFO_CUDA_DEVICE" in tables:
        there = activity.columns(sql, "TARGET_INFO_CUDA_DEVICE").keys()
        if {"gpuId", "cudaId", "pid"} <= there:
            rows = sql.execute("SELECT pid, cudaId, gpuId FROM TARGET_INFO_CUDA_DEVICE")
            known = {
                (int(pid), int(cuda)): int(gpu)
                for pid, cuda, gpu in rows
                if type(pid) is type(cuda) is type(gpu) is int
            }
    return {
        (process, device): known.get((process & 0xFFFFFF, device), device)
        for process, numbers in devices.items()
        for device in numbers
    }


def sharers(numbers: Mapping[Device, int]) -> dict[int, list[int]]:
    """GPU → processes, of GPUs that several processes used."""
    found: dict[int, list[int]] = {}
    for (process, _), gpu in numbers.items():
        found.setdefault(gpu, [])
        if process not in found[gpu]:
            found[gpu].append(process)
    return {gpu: users for gpu, users in found.items() if len(users) > 1}


def names(sql: sqlite3.Connection, tables: set[str]) -> dict[int, str]:
    """Process → its program's name without folders, of either slash."""
    if "PROCESSES" not in tables:
        return {}
    rows = sql.execute("SELECT globalPid, name FROM PROCESSES")
    return {
        _int(process) >> 24: str(name or "").replace("\\", "/").rpartition("/")[2]
        for process, name in rows
    }


def labels(
    processes: Sequence[int], named: Mapping[int, str], numbers: Mapping[Device, int]
) -> dict[int, str]:
    """Process → label, each unique: processes of one name all carry their GPU, where each has one
    of its own, else their pid.

    So that no label is another one with something added: of ``python3`` and ``python3#112`` nobody
    can say which process the first is.

    Args:
        numbers: which GPU each process' device is.
    """
    used: dict[int, list[int]] = {process: [] for process in processes}
    for (process, _), gpu in numbers.items():
        used.get(process, []).append(gpu)
    plain = {
        process: shortened(named.get(process) or f"process {process & 0xFFFFFF}", LABEL_LIMIT)
        for process in processes
    }
    alike: dict[str, list[int]] = {}
    for process, text in plain.items():
        alike.setdefault(text, []).append(process)
    full = {}
    for text, group in alike.items():
        gpus = {used[process][0] for process in group if len(used[process]) == 1}
        apart = len(gpus) == len(group)
        for process in group:
            more = f" GPU {used[process][0]}" if apart else f"-{process & 0xFFFFFF}"
            full[process] = text if len(group) == 1 else text + more
    counts = Counter(full.values())
    return {
        # Files of one run, merged: the same process on other hardware.
        process: text if counts[text] == 1 else f"{text}.{process >> 32}"
        for process, text in full.items()
    }


def device_words(process_devices: Sequence[int]) -> str:
    """``cuda:3``, or ``cuda:0,1`` of a process on several."""
    return f"cuda:{','.join(map(str, process_devices))}" if process_devices else "cpu"


def gpu_notes(
    process: int, devices: Sequence[int], numbers: Mapping[Device, int], gpus: Mapping[int, str]
) -> list[str]:
    """Which GPU each device of a process is: ``cuda:0 is GPU 3, NVIDIA H100 80GB HBM3``."""
    notes = []
    for device in devices:
        gpu = numbers.get((process, device), device)
        name = one_line(gpus.get(gpu, ""), 60)
        notes.append(f"cuda:{device} is GPU {gpu}" + (f", {name}" if name else ""))
    return notes


def _int(value: object) -> int:
    return value if type(value) is int else 0
