"""Steps of a recorded program: it knew nothing of llmprof, so they are found when it is read."""

from __future__ import annotations

import sqlite3

from llmprof.records import RunData
from llmprof.runfile.foreign.tables import add_rounds, choose_steps


def add_traced_rounds(
    sql: sqlite3.Connection, tables: set[str], data: RunData, step_range: str | None
) -> None:
    """Give every recorded process its traced rounds, made from NVTX ranges.

    Raises:
        UsageError: ``step_range`` matches no range.
    """
    busy = [p.process for p in data.processes if p.kernels]
    # Not the ranges that llmprof made of the second run's rounds (``record --twice``).
    own = {p.process for p in data.processes}
    found = choose_steps(sql, tables, busy, step_range, own)
    engines = {engine.engine_id: engine for engine in data.engines}
    for process in data.processes:
        if process.engine_id is None or process.engine_id not in engines:
            continue
        span = process.first_ns, process.last_ns
        engine = engines[process.engine_id]
        add_rounds(data, engine, process.process, found.steps, found.pattern, lambda s=span: s)  # type: ignore[misc]
    data.info.environment["step_range"] = found.pattern or None
    if not found.steps and any(p.kernels for p in data.processes):
        data.warnings.append(found.none_known())
