"""Rounds of a recorded program: it knew nothing of llmprof, so its steps are found later."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from llmprof.records import EngineInfo, EngineRecord, Missing, RunData, Warned
from llmprof.records.processes import RecordedProcess
from llmprof.runfile.activity import CALLS, KERNELS
from llmprof.runfile.foreign.processes import device_words
from llmprof.runfile.foreign.tables import add_whole_round
from llmprof.runfile.schema import PM_FURTHER, PM_ROUNDS, global_pid

_COPIES = ("CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")
NOT_ENDED = "the recording was not ended: llmprof was killed, or it still records"


def recorded_info(devices: Sequence[int]) -> EngineInfo:
    """Of a process that was recorded, by the GPUs that it worked on, ascending."""
    notes = [f"recorded on GPU {', '.join(map(str, devices))}"] if devices else []
    return EngineInfo.not_driven(device_words(devices), notes)


def add_unfinished(sql: sqlite3.Connection, tables: set[str], data: RunData) -> None:
    """Processes of a recording that did not come to its end, by their rows: llmprof writes them
    when it knows all of them."""
    if data.info.state != "running":
        return
    written = {process.engine_id for process in data.processes}
    for engine in data.engines:
        if engine.engine_id in written or engine.traced_pid is None:
            continue
        found = _process(sql, tables, engine, engine.traced_pid)
        if found is not None:
            data.processes.append(found)
    data.warnings.append(Warned("run", NOT_ENDED))
    if data.why_missing("run", "timing pass") is None:
        data.missing.append(Missing("run", "timing pass", NOT_ENDED))


def _process(
    sql: sqlite3.Connection, tables: set[str], engine: EngineRecord, process: int
) -> RecordedProcess | None:
    """What the rows say of it, and the engine's GPUs; ``None`` without any work."""
    counts = dict.fromkeys((KERNELS, *_COPIES, CALLS, "NVTX_EVENTS"), 0)
    times: list[int] = []
    devices: set[int] = set()
    for table in counts:
        if table not in tables:
            continue
        if table in (KERNELS, *_COPIES):
            where = "WHERE globalPid = ?"
            named = f"SELECT DISTINCT deviceId FROM {table} {where}"
            devices |= {row[0] for row in sql.execute(named, [global_pid(process)])}
        else:
            where = "WHERE globalTid >> 24 = ? >> 24"
        query = f'SELECT count(*), min(start), max("end") FROM {table} {where}'
        count, first, last = sql.execute(query, [global_pid(process)]).fetchone()
        counts[table] = count
        if table in (KERNELS, *_COPIES) and count:
            times += [int(first), int(last)]
    if not times:
        return None
    engine.info = engine.info or recorded_info(sorted(devices))
    return RecordedProcess(
        process=process, engine_id=engine.engine_id, pid=process & 0xFFFFFF, parent=0,
        label=engine.label, executable="", command=[], rank=None, started_ns=min(times),
        first_ns=min(times), last_ns=max(times), kernels=counts[KERNELS],
        copies=sum(counts[table] for table in _COPIES), calls=counts[CALLS],
        ranges=counts["NVTX_EVENTS"], dropped=0, ended=False, library="",
    )  # fmt: skip


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
