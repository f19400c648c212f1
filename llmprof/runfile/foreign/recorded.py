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


def sampled_devices(sql: sqlite3.Connection, tables: set[str]) -> list[tuple[int, int]]:
    """(round id, device) of GPUs whose counters were sampled while a program ran."""
    if "LLMPROF_PM_ROUND" not in tables:
        return []
    rows = sql.execute("SELECT round_id, device FROM LLMPROF_PM_ROUND").fetchall()
    return [
        (round_id, device)
        for round_id, device in rows
        if type(round_id) is int and PM_ROUNDS <= round_id < PM_FURTHER
    ]
