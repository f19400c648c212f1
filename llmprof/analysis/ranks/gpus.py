"""The GPU of each rank while its engine decoded: power, memory, clock, counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from llmprof.analysis.ranks.results import RankGpu, RanksReport
from llmprof.analysis.timing.conditions import CLOCK_DRIFT, Conditions, Span
from llmprof.records import GpuDevice, Maybe, Unavailable


@dataclass(frozen=True)
class Counted:
    """Means of the PM counters over the decode steps of the sampled round, % of the peak."""

    dram_pct: Maybe
    sm_active_pct: Maybe


def rank_gpu(
    device: int,
    facts: GpuDevice | None,
    seen: Conditions | Unavailable,
    counted: Counted | Unavailable,
) -> RankGpu:
    """One GPU, from what NVML and the counters said of it."""
    silent = Unavailable("NVML did not read it")
    power = memory = clock = seen if isinstance(seen, Unavailable) else silent
    throttle: tuple[tuple[str, float], ...] = ()
    dram = active = counted if isinstance(counted, Unavailable) else silent
    found: dict[str, Maybe] = {"power": power, "memory": memory, "clock": clock}
    if isinstance(seen, Conditions):
        throttle = seen.throttle
        found["power"] = _of(seen.power_w, "median")
        found["memory"] = _of(seen.memory_used_mib, "max")
        found["clock"] = _of(seen.sm_clock_mhz, "median")
    if isinstance(counted, Counted):
        found |= {"dram": counted.dram_pct, "active": counted.sm_active_pct}
    link = None if facts is None else facts.nvlink_gb_s
    return RankGpu(
        device=device,
        power_w=found["power"],
        memory_used_mib=found["memory"],
        sm_clock_mhz=found["clock"],
        throttle=throttle,
        dram_pct=found.get("dram", dram),
        sm_active_pct=found.get("active", active),
        nvlink_gb_s=Unavailable("NVML reports no active NVLink") if link is None else link,
    )


def _of(span: Span | None, which: str) -> Maybe:
    value: float | None = None if span is None else getattr(span, which)
    return Unavailable("NVML did not read it") if value is None else value


def with_gpus(group: RanksReport, gpus: Sequence[RankGpu]) -> RanksReport:
    """The group with its GPUs, in the order of its ranks. A rank that is late by its kernels on a
    GPU whose clock is lower than the others' is late by its clock."""
    group = replace(group, gpus=tuple(gpus))
    why = group.reason
    if why is None or why.why != "kernels":
        return group
    row = next(n for n, line in enumerate(group.ranks) if line.rank == why.rank)
    clocks = [g.sm_clock_mhz for g in gpus]
    own = clocks[row]
    others = [c for n, c in enumerate(clocks) if n != row and not isinstance(c, Unavailable)]
    if isinstance(own, Unavailable) or not others or own >= median(others) * (1 - CLOCK_DRIFT):
        return group
    words = (
        f"the clock of GPU {gpus[row].device} is {own:.0f} MHz, {median(others):.0f} MHz on the"
        " other GPUs"
    )
    if gpus[row].throttle:
        name, share = gpus[row].throttle[0]
        words += f" ({name} in {share:.0%} of the samples)"
    words += f"; {why.words}"
    told = group.words.removesuffix(why.words) + words
    return replace(group, words=told, reason=replace(why, why="clock", words=words))
