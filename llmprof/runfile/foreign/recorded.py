"""Rounds of a recorded program: it knew nothing of llmprof, so its steps are found later."""

from __future__ import annotations

import sqlite3

from llmprof.records import RunData
from llmprof.runfile.foreign.tables import add_whole_round
from llmprof.runfile.schema import PM_FURTHER, PM_ROUNDS


def add_traced_rounds(data: RunData) -> None:
    """Give every recorded process that used a device a round over all that it did."""
    engines = {engine.engine_id: engine for engine in data.engines}
    for process in data.processes:
        engine = None if process.engine_id is None else engines.get(process.engine_id)
        if engine is not None:
            add_whole_round(data, engine, process.process, (process.first_ns, process.last_ns))


def sampled_devices(sql: sqlite3.Connection, tables: set[str]) -> list[tuple[int, int, int, int]]:
    """(round id, device, begin, end) of stretches in which a GPU's counters were sampled while a
    program ran, ns since the start of the run."""
    if not {"LLMPROF_PM_ROUND", "LLMPROF_PM_SAMPLE"} <= tables:
        return []
    rows = sql.execute(
        'SELECT r.round_id, r.device, min(s.start), max(s."end") FROM LLMPROF_PM_ROUND AS r'
        " JOIN LLMPROF_PM_SAMPLE AS s ON s.round_id = r.round_id WHERE r.round_id >= ?"
        " AND r.round_id < ? GROUP BY r.round_id, r.device ORDER BY r.round_id",
        [PM_ROUNDS, PM_FURTHER],
    ).fetchall()
    return [row for row in rows if all(type(cell) is int for cell in row)]
