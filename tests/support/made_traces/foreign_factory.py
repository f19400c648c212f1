"""Files as Nsight Systems exports them, in the schema of each version that was seen."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

VERSIONS = {
    "2022.4.2.1": ("EXPORT_META_DATA", "3.0.0"),
    "2023.4.4.54": ("META_DATA_EXPORT", "3.7.2"),
    "2026.1.1.204": ("META_DATA_EXPORT", "3.24.14"),
    "2026.2.1.210": ("META_DATA_EXPORT", "3.25.0"),
}
PID = 4001
GLOBAL = 1 << 48 | PID << 24
STEP, PAUSE = 1_000_000, 200_000
NAMES = ("ampere_gemm_kernel(float*)", "flash_fwd_kernel(Params)")


@dataclass
class Foreign:
    """What is in the file."""

    steps: int
    kernels: int
    kernel_ns: int = 0
    starts: list[int] = field(default_factory=list)


def write(
    path: Path,
    version: str = "2026.2.1.210",
    text: str = "decode {}",
    steps: int = 10,
    per_step: int = 20,
    by_id: bool = False,
) -> Foreign:
    """One process, ``steps`` ranges with their calls and kernels, and operators inside.

    Args:
        by_id: NVTX texts by ``textId`` instead of inline.
    """
    meta, schema = VERSIONS[version]
    made = Foreign(steps, steps * per_step)
    source = random.Random(3)
    graph = ", graphNodeId INTEGER" + (", graphId INTEGER" if version > "2026" else "")
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            f"""
            CREATE TABLE {meta} (name TEXT, value TEXT);
            INSERT INTO {meta} VALUES ('EXPORT_PRODUCT_VERSION', '{version}'),
              ('EXPORT_SCHEMA_VERSION', '{schema}');
            CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
            CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, "end" INTEGER, eventType INTEGER,
              "text" TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER,
              domainId INTEGER);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, "end" INTEGER NOT NULL,
              deviceId INTEGER, contextId INTEGER, streamId INTEGER, correlationId INTEGER,
              globalPid INTEGER, demangledName INTEGER, shortName INTEGER, gridX INTEGER,
              gridY INTEGER, gridZ INTEGER, blockX INTEGER, blockY INTEGER, blockZ INTEGER{graph});
            CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, "end" INTEGER,
              eventClass INTEGER, globalTid INTEGER, correlationId INTEGER, nameId INTEGER,
              returnValue INTEGER);
            CREATE TABLE PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT);
            INSERT INTO PROCESSES VALUES ({GLOBAL}, {PID}, '/usr/bin/python3');
            INSERT INTO StringIds VALUES (1, '{NAMES[0]}'), (2, '{NAMES[1]}'), (3, 'cudaLaunch');
            """
        )
        strings = {text.format(i): 100 + i for i in range(1, steps + 1)}
        if by_id:
            db.executemany("INSERT INTO StringIds (value, id) VALUES (?, ?)", strings.items())
        for step in range(1, steps + 1):
            start = 50_000_000 + step * (STEP + PAUSE)
            made.starts.append(start)
            name = text.format(step)
            label = (None, strings[name]) if by_id else (name, None)
            db.execute(
                "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, ?, ?, NULL, ?, 0)",
                (start, start + STEP, label[0], GLOBAL | PID, label[1]),
            )
            slot = STEP // (per_step + 2)
            for nth in range(per_step):
                call = start + (nth + 1) * slot
                length = slot // 2 + source.randrange(100)
                correlation = step * 1000 + nth
                made.kernel_ns += length
                row = [call + 2000, call + 2000 + length, 0, 1, 7, correlation, GLOBAL, 1 + nth % 2,
                       1 + nth % 2, 1, 1, 1, 128, 1, 1, None]  # fmt: skip
                row += [None] if version > "2026" else []
                db.execute(
                    f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({', '.join('?' * len(row))})",
                    row,
                )
                db.execute(
                    "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 3, 0)",
                    (call, call + 1500, GLOBAL | PID, correlation),
                )
                db.execute(
                    "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, 'aten::linear', ?, NULL, NULL, 0)",
                    (call - 10, call + 1600, GLOBAL | PID),
                )
        db.commit()
    return made
