"""Steps of a recorded program: it knew nothing of llmprof, so they are found when it is read."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from llmprof.records import Missing, RunData
from llmprof.runfile.foreign.tables import add_rounds, choose_steps
from llmprof.runfile.schema import PM_ROUNDS


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
    _add_sampled_rounds(sql, tables, data)
    data.info.environment["step_range"] = found.pattern or None
    if not found.steps and any(p.kernels for p in data.processes):
        data.warnings.append(found.none_known())


def _add_sampled_rounds(sql: sqlite3.Connection, tables: set[str], data: RunData) -> None:
    """Where a GPU's counters were sampled meanwhile, the longest traced round is a sampled one too.

    The counters are the GPU's: of one that several processes used, nobody's bandwidth can be told.
    """
    if "LLMPROF_PM_ROUND" not in tables:
        return
    rows = sql.execute("SELECT round_id, device FROM LLMPROF_PM_ROUND").fetchall()
    for round_id, device in rows:
        if type(round_id) is not int or round_id < PM_ROUNDS:
            continue
        users = [
            e for e in data.engines if e.info is not None and e.info.device == f"cuda:{device}"
        ]
        if len(users) != 1:
            who = ", ".join(e.label for e in users) or "nobody"
            reason = f"GPU {device} was used by {who}: its counters are nobody's own"
            data.missing += [Missing(e.label, "pm", reason) for e in users]
            continue
        traced = data.rounds_of(users[0].engine_id, "traced")
        if traced:
            longest = max(traced, key=lambda r: r.steps)
            data.rounds.append(replace(longest, round_id=round_id, pass_name="sampled", index=0))
