"""The run file of a tensor-parallel engine that never ran."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rundata_factory as make
from numpy.typing import NDArray

from llmprof.analysis.ranks.matched.members import Member
from llmprof.records import RoundRecord
from llmprof.records.processes import RankProcess
from llmprof.runfile.schema import global_pid
from llmprof.runfile.writing.writer import RunFileWriter

Further = Callable[[RunFileWriter, RoundRecord], None]


def run_of(
    path: Path, members: list[Member], further: Further | None = None, one_process: bool = False
) -> Path:
    """The file that a session leaves behind, with the kernels of all ranks.

    Args:
        further: writes more, given the traced round.
        one_process: of several GPUs, whose members all have its id.
    """
    bounds = members[0].bounds_ns.tolist()
    info = make.engine_info(
        device="cuda:0,1",
        ranks=len(members),
        collective_bytes={"AllReduce": 10_240},
        warmup_min_steps=0,
    )
    engine = make.engine(0, "torch", info=info)
    engine.traced_pid = members[0].pid
    if not one_process:
        engine.traced_ranks = [RankProcess(m.rank, m.pid, f"cuda:{m.device}") for m in members]
    one = make.decode_round(0, 0, [1.0] * (len(bounds) - 1))
    record = replace(
        one,
        pass_name="traced",
        pid=members[0].pid,
        start_ns=bounds[0] - 2_000_000,
        prefill_start_ns=bounds[0] - 1_000_000,
        stamps_ns=array("q", bounds),
        end_ns=bounds[-1] + 1_000,
    )
    started = replace(make.run_info(), t0_ns=bounds[0] - 10_000_000, state="running")
    with RunFileWriter(path, started) as writer:
        writer.put_engine(engine)
        writer.put_round(record)
        for member in members:
            put_member(writer, member)
        if further is not None:
            further(writer, record)
        writer.set_state("finished")
    return path


def put_member(writer: RunFileWriter, member: Member) -> None:
    """The kernels of one rank and the calls that launched them."""
    count = len(member.label)
    if not count:
        return
    number = np.array([writer.string_id(name) for name in member.names], np.int64)[member.label]
    correlation = (member.rank << 48) + 1 + np.arange(count, dtype=np.int64)
    pid = global_pid(member.pid)

    def same(value: int) -> NDArray[np.int64]:
        return np.full(count, value, np.int64)

    ones = ("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "registersPerThread")
    kernel = {
        "start": member.start_ns,
        "end": member.end_ns,
        "deviceId": same(member.device),
        "contextId": same(1),
        "streamId": same(7),
        "correlationId": correlation,
        "globalPid": same(pid),
        "demangledName": number,
        "shortName": number,
        "mangledName": number,
        **{name: same(1) for name in ones},
    }
    needed = {"staticSharedMemory", "dynamicSharedMemory", "localMemoryPerThread"}
    needed |= {"localMemoryTotal", "gridId"}
    writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", kernel | {name: same(0) for name in needed})
    writer.bulk(
        "CUPTI_ACTIVITY_KIND_RUNTIME",
        {
            "start": member.launch_ns,
            "end": member.launch_ns + 500,
            "eventClass": same(0),
            "globalTid": same(pid | 1),
            "correlationId": correlation,
            "nameId": same(writer.string_id("cudaLaunchKernel")),
            "returnValue": same(0),
        },
    )
