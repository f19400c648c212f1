"""What a round leaves in a worker, brought into the run file."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmprof.analysis.timing.conditions import gpu_index, gpu_indices
from llmprof.engines.base import rank_spool
from llmprof.plaintext import one_line
from llmprof.records import (
    LOST_RECORDS,
    CpuUse,
    EngineRecord,
    Missing,
    NvtxEvent,
    PassName,
    RoundRecord,
    Unavailable,
)
from llmprof.records.processes import RankProcess
from llmprof.runfile.schema import OP_DOMAIN
from llmprof.session.client import Reply, WorkerClient
from llmprof.session.recorder import Recorder

EnergyBetween = Callable[[int, int, int], "tuple[int, int] | None"]
"""(device, start_ns, end_ns) → NVML's counter at both moments, mJ."""


def round_record(
    client: WorkerClient,
    engine: EngineRecord,
    asked: tuple[PassName, int, int, int],
    reply: Reply | None,
    cpu: CpuUse | None,
    energy_between: EnergyBetween,
) -> RoundRecord | None:
    """From the stamps and the answer; ``None``: it ended before the round's first clock read.

    Args:
        asked: pass, index, serial number, steps.
        reply: ``None`` for a round that was cut short.
    """
    pass_name, index, serial, steps = asked
    seen, start_ns, prefill_ns, stamps = client.board.read()
    if seen != serial or not prefill_ns:
        return None
    facts: dict[str, Any] = reply.facts if reply else {}
    first = stamps[0] if len(stamps) else None
    prefill = _energy(engine, energy_between, prefill_ns, first)
    return RoundRecord(
        round_id=serial,
        engine_id=engine.engine_id,
        pass_name=pass_name,
        index=index,
        pid=client.pid,
        tid=client.tid,
        start_ns=start_ns,
        prefill_start_ns=prefill_ns,
        stamps_ns=stamps,
        end_ns=facts.get("end_ns", stamps[-1] if len(stamps) else prefill_ns),
        complete=reply is not None and len(stamps) == steps + 1,
        synchronous=facts.get("synchronous", True),
        tokens=facts.get("tokens", []),
        energy_mj=_energy(engine, energy_between, first, facts.get("end_ns")),
        cpu=cpu,
        prefill_energy_mj=None if prefill is None else max(0, prefill[1] - prefill[0]),
    )


def _energy(
    engine: EngineRecord, between: EnergyBetween, start_ns: int | None, end_ns: int | None
) -> tuple[int, int] | None:
    """NVML's counters of all its GPUs at both moments; ``None`` on a CPU."""
    devices = gpu_indices(engine)
    if not devices or start_ns is None or end_ns is None:
        return None
    spent = [between(device, start_ns, end_ns) for device in devices]
    known = [pair for pair in spent if pair is not None]
    if len(known) < len(devices):
        return None  # of one GPU it is not known
    return sum(begin for begin, _ in known), sum(end for _, end in known)


def keep_operators(recorder: Recorder, pid: int, reply: Reply) -> None:
    """Write the operator ranges that came with a traced round of worker ``pid``."""
    for message, blob in reply.extra:
        if message["is"] == "ops":
            names = [one_line(str(name), 200) for name in message["names"]]
            flat = array("q", blob)
            rows = zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
            recorder.operators(
                [
                    NvtxEvent(start, end, names[number], pid, tid, OP_DOMAIN)
                    for number, start, end, tid in rows
                ]
            )


def keep_trace(
    recorder: Recorder, engine: EngineRecord, spool: Path | None, reply: Reply, record: RoundRecord
) -> None:
    """Bring the raw GPU trace of a traced round into the run file.

    Args:
        spool: of the worker; ``None``: it has no kernel tracer.
    """
    told = [m["cupti"] for m, _ in reply.extra if m["is"] == "tracing" and "cupti" in m]
    if spool is None or not told or gpu_index(engine) is None:
        return
    label = engine.label
    if "unavailable" in told[0]:
        reason = one_line(str(told[0]["unavailable"]))
        recorder.missing([Missing(label, "kernels", reason)])
        return
    recorder.progress(engine.engine_id, "decoding the trace", None)
    done = recorder.trace(record, spool)
    if isinstance(done, Unavailable):
        recorder.missing([Missing(label, "kernels", done.reason)])
        return
    for text in done.lost:
        recorder.warning(label, f"the trace is incomplete: {text}")
    if done.lost:
        recorder.missing([Missing(label, LOST_RECORDS, "; ".join(done.lost))])
    said: dict[str, str] = {}
    for message, _ in reply.extra:
        if message["is"] == "tracing":
            said.update(message.get("ranks", {}))
    for one in engine.traced_ranks[1:]:
        _keep_rank(recorder, label, spool, record, one, str(said.get(str(one.rank), "")))


def _keep_rank(
    recorder: Recorder, label: str, spool: Path, record: RoundRecord, one: RankProcess, wrong: str
) -> None:
    """Bring in the kernels of a rank behind 0; what is wrong with them is recorded."""
    done = recorder.trace(record, Path(rank_spool(str(spool), one.rank)), one.pid, one.rank)
    if isinstance(done, Unavailable):
        reason = one_line(wrong or done.reason)
        recorder.missing([Missing(label, f"kernels of rank {one.rank}", reason)])
        return
    for text in [*done.lost, *([one_line(wrong)] if wrong else [])]:
        recorder.warning(label, f"the trace of rank {one.rank} is incomplete: {text}")
