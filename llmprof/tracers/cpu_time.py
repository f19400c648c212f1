"""Who had the CPUs during a round: the worker and llmprof, others, the hypervisor, the quota.

Read by the parent right before and right behind a round (0.1 ms each), so it costs the round
nothing. The kernel counts in ticks of 10 ms; sums over rounds are good to a few percent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmprof.machine import ROOT, cpu_groups, quota_cores
from llmprof.records import CpuUse

_IDLE = (3, 4)
"""Columns idle and iowait of a ``cpuN`` line of /proc/stat (proc_stat(5))."""
_STEAL = 7
_COUNTED = 8
"""user to steal; guest times are within user and nice."""
_UTIME, _CHILDREN = 11, 15
"""Of /proc/PID/stat behind the name: utime, stime, cutime, cstime (proc_pid_stat(5))."""


@dataclass(frozen=True)
class CpuReading:
    """Counters at one moment, ns unless said."""

    time_ns: int
    cpus: int
    busy_ns: int
    steal_ns: int
    own_ns: int
    quota: tuple[int, int, int] | None
    """Periods of the CPU quota, those in which it stopped somebody, ns of being stopped."""


def read_cpu(pids: Sequence[int], root: Path = ROOT) -> CpuReading | None:
    """Counters of the CPUs that this process may run on; ``None`` where the kernel shows none.

    Args:
        pids: processes whose time is the run's own, this one left out.
    """
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    allowed = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    busy = steal = cpus = 0
    for line in _lines(root / "proc/stat"):
        name, *columns = line.split()
        if name in allowed and len(columns) > _STEAL:
            ticks = [int(c) for c in columns[:_COUNTED]]
            busy += sum(ticks) - sum(ticks[i] for i in _IDLE) - ticks[_STEAL]
            steal += ticks[_STEAL]
            cpus += 1
    if not cpus:
        return None
    times = os.times()
    own = round((times.user + times.system) * 1e9)
    own += sum(_ticks(root / f"proc/{pid}/stat") for pid in pids) * tick_ns
    return CpuReading(
        time_ns=time.monotonic_ns(),
        cpus=cpus,
        busy_ns=busy * tick_ns,
        steal_ns=steal * tick_ns,
        own_ns=own,
        quota=_quota_counters(root),
    )


def between(before: CpuReading | None, after: CpuReading | None) -> CpuUse | None:
    """What was used between two readings; ``None`` where one is missing or the CPUs changed."""
    if before is None or after is None or before.cpus != after.cpus:
        return None
    quota = (0, 0, 0)
    if before.quota is not None and after.quota is not None:
        first, second, third = (b - a for a, b in zip(before.quota, after.quota, strict=True))
        quota = first, second, third
    return CpuUse(
        wall_ns=after.time_ns - before.time_ns,
        cpus=after.cpus,
        busy_ns=after.busy_ns - before.busy_ns,
        own_ns=after.own_ns - before.own_ns,
        steal_ns=after.steal_ns - before.steal_ns,
        periods=quota[0],
        throttled=quota[1],
        throttled_ns=quota[2],
    )


def _quota_counters(root: Path) -> tuple[int, int, int] | None:
    """Of the first group that has a quota: ``cpu.stat`` of cgroup v2 counts µs
    (``throttled_usec``), of v1 ns (``throttled_time``)."""
    if quota_cores(root) is None:
        return None
    for folder in cpu_groups(root):
        rows = [line.split() for line in _lines(folder / "cpu.stat")]
        found = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}
        if found.get("nr_periods"):
            stopped = found.get("throttled_time", 1000 * found.get("throttled_usec", 0))
            return found["nr_periods"], found.get("nr_throttled", 0), stopped
    return None


def _ticks(path: Path) -> int:
    """CPU time of a process and of its children that have ended."""
    text = "".join(_lines(path))
    columns = text.rpartition(")")[2].split()
    return sum(int(c) for c in columns[_UTIME:_CHILDREN])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
