"""Did the engine have the CPUs that it decodes with: others, the hypervisor, a quota."""

from __future__ import annotations

from dataclasses import dataclass

from llmprof.records import CpuUse, EngineRecord, RunData, Unavailable, Warned

LEAST_NS = 1_000_000_000
"""Of measured time: CPU time is counted in ticks of 10 ms."""
SHARE = 0.05
"""Of the CPUs: less is the system's own housekeeping, or an error of counting."""
STEAL = 0.01
THROTTLED = 0.02
"""Periods of the quota in which it stopped somebody."""


@dataclass(frozen=True)
class CpuConditions:
    """The CPUs that the worker may use, over its timing rounds; CPUs, mean, unless said."""

    cpus: int
    own_cpus: float
    """The worker's and llmprof's own."""
    other_cpus: float
    """Everybody else's."""
    steal_share: float
    """Of the CPUs' time, what the hypervisor gave to other machines, 0–1."""
    quota_periods: int
    """Periods of the cgroup's CPU quota; 0 without one."""
    throttled_periods: int
    """Those in which it stopped a thread."""
    throttled_s: float
    """All threads together."""
    wanted_cpus: int
    """Threads that the engine computes with; 1 where a GPU does."""


def cpu_conditions(data: RunData, engine: EngineRecord) -> CpuConditions | Unavailable:
    """Of one engine's timing pass."""
    uses = [r.cpu for r in data.rounds_of(engine.engine_id) if r.cpu is not None]
    wall = sum(use.wall_ns for use in uses)
    if not uses and data.info.source != "driven":
        return Unavailable("CPU time is counted in rounds that llmprof drives")
    if not uses:
        return Unavailable("CPU time was not counted: the kernel does not show it, or an older run")
    if wall < LEAST_NS:
        return Unavailable("the rounds are too short to count CPU time: 1 s at least")
    threads = engine.info.threads if engine.info else None
    return CpuConditions(
        cpus=uses[-1].cpus,
        own_cpus=_total(uses, "own_ns") / wall,
        other_cpus=max(0, _total(uses, "busy_ns") - _total(uses, "own_ns")) / wall,
        steal_share=_total(uses, "steal_ns") / sum(use.wall_ns * use.cpus for use in uses),
        quota_periods=_total(uses, "periods"),
        throttled_periods=_total(uses, "throttled"),
        throttled_s=_total(uses, "throttled_ns") / 1e9,
        wanted_cpus=threads or 1,
    )


def cpu_warnings(label: str, found: CpuConditions | Unavailable) -> list[Warned]:
    """What makes this engine's numbers doubtful."""
    if isinstance(found, Unavailable):
        return []
    texts = []
    if found.throttled_periods > THROTTLED * found.quota_periods:
        texts.append(
            f"the CPU quota stopped it in {found.throttled_periods} of {found.quota_periods}"
            f" periods ({found.throttled_s:.1f} s of its threads): its numbers reflect the quota"
        )
    free = max(0, found.cpus - found.wanted_cpus)
    if found.other_cpus > 0.9 * free + SHARE * found.cpus:
        texts.append(
            f"other processes took {found.other_cpus:.1f} of {found.cpus} CPUs while it decoded,"
            f" which needs {found.wanted_cpus}: slower and less even than alone"
        )
    if found.steal_share > STEAL:
        texts.append(
            f"the hypervisor took {found.steal_share:.0%} of the CPUs' time (steal) meanwhile"
        )
    return [Warned(label, text) for text in texts]


def _total(uses: list[CpuUse], field: str) -> int:
    return sum(int(getattr(use, field)) for use in uses)
