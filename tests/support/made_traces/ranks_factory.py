"""Ranks that never ran: decode steps with kernels and all-reduces whose every time is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmprof.analysis.device.naming.categories import categorise
from llmprof.analysis.ranks.matched.members import Member

REDUCE = "ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
NAMES = ("gemv_kernel", "slow_kernel", REDUCE, GATHER)
TRANSFER_NS = 7_000
WORK_NS = 40_000
GAP_NS = 2_000


def group(
    world: int = 8,
    steps: int = 20,
    reduces: int = 6,
    *,
    host_ns: Mapping[int, int] | None = None,
    kernel_ns: Mapping[int, int] | None = None,
    offset_ns: Mapping[int, int] | None = None,
    drift_ppb: Mapping[int, float] | None = None,
    only_steps: Mapping[int, tuple[int, int]] | None = None,
    jitter_ns: int = 300,
    launches: bool = True,
    start_ns: int = 1_000_000_000,
) -> list[Member]:
    """Each step: ``reduces`` times a kernel and an all-reduce, then an all-gather.

    Args:
        host_ns: rank → how much later its host launches the first kernel of each step.
        kernel_ns: rank → length of ``slow_kernel`` before the first all-reduce of each step.
        offset_ns: rank → its clock minus that of rank 0, at ``start_ns``.
        only_steps: rank → first and last step (from 1) that its recording has.
    """
    random = np.random.default_rng(1)
    rows: list[list[tuple[int, int, int, int]]] = [[] for _ in range(world)]
    at = np.full(world, start_ns, np.int64)
    bounds = [start_ns]
    marks: list[list[int]] = [[] for _ in range(world)]
    for _ in range(steps):
        for rank in range(world):
            marks[rank].append(len(rows[rank]))
        for number in range(reduces + 1):
            ready = np.empty(world, np.int64)
            for rank in range(world):
                late = (host_ns or {}).get(rank, 0) if number == 0 else 0
                launch = int(at[rank]) + late
                begin = launch + GAP_NS + int(random.integers(0, jitter_ns + 1))
                rows[rank].append((begin, begin + WORK_NS, 0, launch))
                begin += WORK_NS
                slow = (kernel_ns or {}).get(rank, 0) if number == 0 else 0
                if slow:
                    rows[rank].append((begin, begin + slow, 1, launch))
                ready[rank] = begin + slow
            end = int(ready.max()) + TRANSFER_NS
            for rank in range(world):
                mine = end + int(random.integers(-jitter_ns, jitter_ns + 1))
                label = 3 if number == reduces else 2
                rows[rank].append((int(ready[rank]), mine, label, int(at[rank])))
                at[rank] = mine
        bounds.append(int(at.max()) + 1_000)
        at[:] = bounds[-1]
    made = []
    for rank in range(world):
        table = np.array(rows[rank], np.int64)
        if only_steps and rank in only_steps:
            first, last = only_steps[rank]
            stop = marks[rank][last] if last < steps else len(table)
            table = table[marks[rank][first - 1] : stop]
        moved = table[:, [0, 1, 3]]
        own = np.rint((moved - start_ns) * ((drift_ppb or {}).get(rank, 0.0) * 1e-9))
        times = moved + (offset_ns or {}).get(rank, 0) + own.astype(np.int64)
        made.append(
            Member(
                rank=rank,
                pid=1000 + rank,
                device=rank,
                engine="torch",
                start_ns=times[:, 0],
                end_ns=times[:, 1],
                label=table[:, 2],
                launch_ns=times[:, 2] if launches else np.full(len(table), -1, np.int64),
                names=NAMES,
                categories=categorise(dict(enumerate(NAMES)), "torch"),
                bounds_ns=np.array(bounds, np.int64) if rank == 0 else np.empty(0, np.int64),
            )
        )
    return made
