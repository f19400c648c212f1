"""Kernel rows a second into a run file, beside a plain ``executemany`` of the same columns.

    python benchmarks/insert_kernels.py

Columns as ``session/trace_import.py`` makes them: one process, device, context and stream, a few
names, times and correlation ids that all differ. Goal: 0.5 million rows a second.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llmprof.records import RunInfo
from llmprof.runfile.writer import RunFileWriter

ROWS = 1_000_000
TABLE = "CUPTI_ACTIVITY_KIND_KERNEL"


def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    start = np.cumsum(random.integers(1000, 9000, ROWS)) + 1_000_000
    name = random.integers(1, 20, ROWS)
    fixed = {"deviceId": 0, "contextId": 1, "streamId": 7, "globalPid": 1 << 48 | 77 << 24}
    fixed |= {"launchType": 1, "gridId": 0, "localMemoryPerThread": 0, "localMemoryTotal": 0}
    fixed |= {"gridZ": 1, "blockZ": 1, "graphId": 3, "sharedMemoryExecuted": 0}
    varying = {
        "start": start,
        "end": start + random.integers(500, 900, ROWS),
        "correlationId": np.arange(ROWS),
        "demangledName": name,
        "shortName": name + 20,
        "mangledName": name + 40,
        "registersPerThread": random.integers(16, 255, ROWS),
        "graphNodeId": np.arange(ROWS) + 1,
    }
    sizes = ("gridX", "gridY", "blockX", "blockY", "staticSharedMemory", "dynamicSharedMemory")
    varying |= {size: random.integers(1, 128, ROWS) for size in sizes}
    return varying | {key: np.full(ROWS, value, np.int64) for key, value in fixed.items()}


def main() -> int:
    given = columns()
    with tempfile.TemporaryDirectory() as name:
        info = RunInfo(1, 1, "bench", None, [], {}, {}, "kernels")
        with RunFileWriter(Path(name) / "ours.sqlite", info) as writer:
            begin = time.perf_counter()
            writer.bulk(TABLE, given)
            ours = ROWS / (time.perf_counter() - begin)
        sql = sqlite3.connect(Path(name) / "plain.sqlite")
        names = ", ".join(f'"{column}"' for column in given)
        sql.execute(f"CREATE TABLE k ({names})")
        begin = time.perf_counter()
        marks = ", ".join("?" * len(given))
        rows = zip(*(column.tolist() for column in given.values()), strict=True)
        sql.executemany(f"INSERT INTO k ({names}) VALUES ({marks})", rows)
        sql.commit()
        plain = ROWS / (time.perf_counter() - begin)
        sql.close()
    print(f"{ours / 1e6:.2f} M rows/s (goal 0.5), plain executemany {plain / 1e6:.2f} M rows/s,"
          f" ratio {ours / plain:.2f}")  # fmt: skip
    return 0 if ours >= 0.5e6 else 1


if __name__ == "__main__":
    sys.exit(main())
