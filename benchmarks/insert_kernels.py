"""Kernel rows a second into a run file, beside a plain ``executemany`` of the same columns.

    python benchmarks/insert_kernels.py

Columns as ``ingest/activities.py`` makes them of a CUDA graph of 587 kernels, one CUPTI buffer
(4 MiB) and one transaction a call: one process, device, context and stream, 22 launch shapes, times
and grid ids that all differ. Interleaved; prints medians. Goal: 2.5 times as fast.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llmprof.records import RunInfo
from llmprof.runfile import schema
from llmprof.runfile.writing.writer import RunFileWriter

GOAL = 2.5
TABLE = "CUPTI_ACTIVITY_KIND_KERNEL"
NODES = 587
SHAPES = 22
BUFFER_ROWS = (4 << 20) // 216
BUFFERS = 16

Columns = dict[str, np.ndarray]


def columns(rows: int) -> Columns:
    random = np.random.default_rng(0)
    start = np.cumsum(random.integers(1000, 20_000, rows)) + 1_000_000
    node = np.arange(rows) % NODES
    shape = random.integers(0, SHAPES, NODES)[node]
    constant = {"deviceId": 0, "contextId": 1, "streamId": 7, "globalPid": 1 << 48 | 77 << 24}
    constant |= {"launchType": 0, "gridZ": 1, "blockZ": 1, "graphId": 3}
    constant |= {"localMemoryPerThread": 0, "localMemoryTotal": 44_040_192}
    by_shape = {"demangledName": 60, "shortName": 60, "mangledName": 60}
    by_shape |= {"registersPerThread": 255, "sharedMemoryExecuted": 233_472}
    by_shape |= {"gridX": 1376, "gridY": 32, "blockX": 512, "blockY": 4}
    by_shape |= {"staticSharedMemory": 16_384, "dynamicSharedMemory": 200_000}
    return {
        "start": start,
        "end": start + random.integers(800, 19_000, rows),
        "correlationId": np.arange(rows) // NODES + 70_000,
        "gridId": np.arange(rows) + 20_000,
        "graphNodeId": node + (3 << 32),
        **{name: random.integers(1, top, SHAPES)[shape] for name, top in by_shape.items()},
        **{name: np.full(rows, value, np.int64) for name, value in constant.items()},
    }


def buffers(given: Columns) -> Iterator[Columns]:
    for at in range(0, BUFFERS * BUFFER_ROWS, BUFFER_ROWS):
        yield {name: values[at : at + BUFFER_ROWS] for name, values in given.items()}


def ours(path: Path, given: Columns) -> float:
    """Seconds."""
    info = RunInfo(1, 1, "bench", None, [], {}, {}, "kernels")
    with RunFileWriter(path, info) as writer:
        begin = time.perf_counter()
        for part in buffers(given):
            writer.bulk(TABLE, part)
        return time.perf_counter() - begin


def plain(path: Path, given: Columns) -> float:
    """Seconds, in the same table of an ordinary connection."""
    sql = sqlite3.connect(path)
    sql.execute("PRAGMA synchronous = NORMAL")
    for statement in schema.statements()[TABLE]:
        sql.execute(statement)
    names = ", ".join(f'"{column}"' for column in given)
    insert = f"INSERT INTO {TABLE} ({names}) VALUES ({', '.join('?' * len(given))})"
    begin = time.perf_counter()
    for part in buffers(given):
        sql.executemany(insert, zip(*(values.tolist() for values in part.values()), strict=True))
        sql.commit()
    took = time.perf_counter() - begin
    sql.close()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    rows = BUFFERS * BUFFER_ROWS
    given = columns(rows)
    ways: tuple[Callable[[Path, Columns], float], ...] = (plain, ours)
    rates: dict[str, list[float]] = {way.__name__: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for way in ways:
                took = way(Path(folder) / f"{way.__name__}{turn}.sqlite", given)
                rates[way.__name__].append(rows / took)
    print(f"{rows:,} kernel rows of {len(given)} columns, {turns} turns\n")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        spread = f"{min(found) / 1e6:.2f}–{max(found) / 1e6:.2f}"
        print(f"{name:6} {medians[name] / 1e6:.2f} M rows/s ({spread})")
    ratio = medians["ours"] / medians["plain"]
    met = ratio >= GOAL
    print(f"ratio  {ratio:.2f}")
    print(f"goal   {GOAL}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
