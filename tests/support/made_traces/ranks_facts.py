"""What a run knows beside kernels: GPUs that NVML sampled, counters, host stacks of every rank."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Final

import numpy as np
import rundata_factory as make

from llmprof.analysis.ranks.matched.members import Member
from llmprof.ingest.host_stacks import put_rank_samples, put_samples
from llmprof.records import GpuDevice, GpuSample, PassName, PmRound, RoundRecord
from llmprof.records.processes import RankProcess
from llmprof.runfile.schema import pm_round
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pyspy.chrome import HostSample, HostSamples
from llmprof.tracers.pyspy.tracer import HostPlan

NUMBERS: Final[dict[int, PassName]] = {90: "timing", 91: "sampled"}
SLEEP_NS = 8_000_000
SLEEPING = (("planted", "/srv/plant.py", 7), ("serve", "/srv/rank.py", 3))
WORKING = (("replay", "/srv/graphs.py", 9), ("serve", "/srv/rank.py", 3))


def put_gpus(
    writer: RunFileWriter, members: list[Member], clocks: dict[int, int], mask: int = 0
) -> None:
    """A timing round with NVML's samples of every GPU, and a sampled one with PM counters; a GPU
    has 100 W more and 1 GiB more than the one before."""
    end = int(members[0].bounds_ns[0]) - 3_000_000
    stamps = [end - 2_000_000 * n for n in range(3, -1, -1)]
    one = make.decode_round(0, 0, [2.0] * 3)
    for number, name in NUMBERS.items():
        moved = replace(one, round_id=number, pass_name=name, pid=members[0].pid)
        times = {"start_ns": stamps[0] - 9_000, "prefill_start_ns": stamps[0] - 8_000}
        writer.put_round(replace(moved, stamps_ns=array("q", stamps), end_ns=stamps[-1], **times))
    devices = [m.device for m in members]
    writer.put_gpu_devices(
        [GpuDevice(d, "NVIDIA H100", f"GPU-{d:04}", nvlink_gb_s=478.116) for d in devices]
    )
    writer.put_gpu_samples(
        [
            GpuSample(
                at,
                m.device,
                sm_clock_mhz=clocks.get(m.rank, 1980),
                power_w=300.0 + 100 * m.rank,
                memory_used_mib=20_480.0 + 1024 * m.rank,
                throttle_mask=mask if m.rank in clocks else 0,
            )
            for at in range(stamps[0] + 1, stamps[-1], 1_000_000)
            for m in members
        ]
    )
    edges = np.arange(stamps[0], stamps[-1] + 1, 200_000)
    for m in members:
        one = pm_round(91, m.device, members[0].device)
        columns = {"start": edges[:-1], "end": edges[1:]}
        values = {"dram_pct": 50.0 + m.rank, "dram_read_pct": 49.0, "sm_active_pct": 80.0}
        full = {name: np.full(len(edges) - 1, value) for name, value in values.items()}
        facts = PmRound(one, m.device, 200_000, "host", 1000, 0, False)
        writer.put_pm_round(facts, {**columns, **full})


def put_host(
    writer: RunFileWriter,
    members: list[Member],
    record: RoundRecord,
    sleep_ns: int = SLEEP_NS,
    early_ns: int = 0,
) -> None:
    """Samples every 50 µs; rank 1's host sleeps at the begin of each step. Those of rank 1 are
    dated so much too early."""
    bounds = members[0].bounds_ns
    for m in members:
        samples = []
        for at in range(int(bounds[0]), int(bounds[-1]), 50_000):
            since = at - int(bounds[np.searchsorted(bounds, at, "right") - 1])
            stack = SLEEPING if m.rank == 1 and since < sleep_ns else WORKING
            samples.append(HostSample(at - early_ns * m.rank, ((m.pid, stack),)))
        found = HostSamples(samples=samples, thread_names={m.pid: "MainThread"}, tick_ns=200_000)
        if m.rank == 0:
            put_samples(writer, record, HostPlan(rate_hz=1000), found, {}, 0)
        else:
            put_rank_samples(writer, record, RankProcess(m.rank, m.pid, "cuda:1"), found)
