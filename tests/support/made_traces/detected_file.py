"""An export of Nsight Systems without a range: made-up decoding, and when its steps began."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from foreign_factory import GLOBAL, PID
from step_factory import Model, Program, step

from llmprof.analysis.steps.events import KERNEL, TO_HOST


def write(path: Path, steps: int = 12) -> list[int]:
    """Times at which the decode steps begin, ns."""
    program = Program(1)
    model = Model(layers=8)
    step(program, model, 50, 50, prefill=True)
    begins = []
    for n in range(steps):
        begins.append(len(program.rows))
        step(program, model, 50 + n)
    events = program.events()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            f"""
            CREATE TABLE META_DATA_EXPORT (name TEXT, value TEXT);
            INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_PRODUCT_VERSION', '2026.2.1');
            CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, "end" INTEGER NOT NULL,
              deviceId INTEGER, contextId INTEGER, streamId INTEGER, correlationId INTEGER,
              globalPid INTEGER, demangledName INTEGER, gridX INTEGER, gridY INTEGER,
              gridZ INTEGER, graphNodeId INTEGER);
            CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, "end" INTEGER NOT NULL,
              deviceId INTEGER, contextId INTEGER, streamId INTEGER, correlationId INTEGER,
              globalPid INTEGER, bytes INTEGER, copyKind INTEGER);
            CREATE TABLE PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT);
            INSERT INTO PROCESSES VALUES ({GLOBAL}, {PID}, '/usr/bin/engine');
            """
        )
        db.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(events.names))
        for n in range(len(events)):
            start, end = int(events.start_ns[n]), int(events.end_ns[n])
            stream, launch = int(events.stream[n]), int(events.launch[n])
            if events.what[n] == KERNEL:
                db.execute(
                    "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL"
                    " VALUES (?, ?, 0, 1, ?, ?, ?, ?, ?, 1, 1, NULL)",
                    (start, end, stream, launch, GLOBAL, int(events.name[n]), int(events.size[n])),
                )
            else:
                kind = 2 if events.what[n] == TO_HOST else 1
                db.execute(
                    "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, 0, 1, ?, ?, ?, ?, ?)",
                    (start, end, stream, launch, GLOBAL, int(events.size[n]), kind),
                )
        db.commit()
    return [int(events.start_ns[row]) for row in begins]
