"""What the analysis of a group of ranks gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llmprof.analysis.device.sweep import Spans
from llmprof.analysis.ranks.lateness import Lateness
from llmprof.analysis.ranks.matched.clocks import ClockFit
from llmprof.analysis.ranks.matched.matching import Matched
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.reasons import Reason
from llmprof.records import Maybe, Provenance, Unavailable
from llmprof.runfile.trace.rows import Ints

Verdict = Literal["balanced", "late", "uneven", "unknown"]
"""``unknown``: one rank alone was recorded, or too few steps."""


@dataclass(frozen=True, kw_only=True)
class Occupied:
    """What one GPU did, ms a step."""

    exposed_ms: float
    """Communication while nothing else ran on its GPU: the sum of the three that follow."""
    exposed_transfer_ms: float
    """In the transfer of a collective."""
    exposed_wait_ms: float
    """Waiting in one, while none transfers."""
    exposed_unsplit_ms: float
    """In collectives that another rank lacks: wait or transfer is not known."""
    compute_ms: float
    """Some other work ran."""
    idle_ms: float
    """Nothing ran. ``exposed + compute + idle`` is the step."""


@dataclass(frozen=True, kw_only=True)
class RankLine(Occupied):
    """One rank. Means over the steps, ms; the collectives of the steps count."""

    rank: int
    name: str
    """``rank 1 · GPU 1``."""
    pid: int
    device: int
    wait_ms: float
    transfer_ms: float
    late_ms: float
    """How long all others waited for it alone."""
    late_steps: int
    """Steps in which it was the critical rank."""
    unmatched: int
    """Its collectives that another rank lacks."""
    steps: int | None
    """Decode steps in its own trace; ``None``: those of another rank are used for it."""


@dataclass(frozen=True)
class CollectiveLine:
    """One sort of collective in the steps; times are medians, µs."""

    name: str
    kind: str
    count: int
    per_step: float
    algorithm: str | Unavailable
    """As far as the kernel's name says it."""
    transfer_us: float
    """From the last start to the last end."""
    quickest_us: float
    """The 5 % quantile of that."""
    wait_us: float
    """Mean over all ranks and collectives."""
    longest_wait_us: float
    bytes: int | Unavailable
    algorithm_gb_s: Maybe
    bus_gb_s: Maybe
    fused: bool
    """Arithmetic is in the kernel: wait and transfer are bounds, not measurements."""

    @property
    def bus_text(self) -> str:
        """Bus bandwidth, GB/s."""
        bus = self.bus_gb_s
        return "n/a" if isinstance(bus, Unavailable) else f"{bus:.2f}"

    def link_text(self, nvlink_gb_s: Maybe) -> str:
        """Bus bandwidth as a share of what NVLink carries."""
        bus = self.bus_gb_s
        if isinstance(bus, Unavailable) or isinstance(nvlink_gb_s, Unavailable):
            return "n/a"
        return f"{bus / nvlink_gb_s:.1%}"


@dataclass(frozen=True)
class RankGpu:
    """The GPU of one rank while its engine decoded."""

    device: int
    power_w: Maybe
    """Median of NVML's samples."""
    memory_used_mib: Maybe
    """The most; of all processes on it."""
    sm_clock_mhz: Maybe
    """Median."""
    throttle: tuple[tuple[str, float], ...]
    """(reason, share of the samples that had it), most frequent first."""
    dram_pct: Maybe
    """DRAM bandwidth by the PM counters, mean over decode steps, % of the peak."""
    sm_active_pct: Maybe
    nvlink_gb_s: Maybe
    """What all active NVLinks carry in one direction."""


@dataclass(frozen=True, eq=False)
class RanksReport:
    """A group of ranks in its traced round."""

    title: str
    """Of the engine or the program."""
    world: int
    """Ranks that there are; fewer may be in the trace."""
    ranks: tuple[RankLine, ...]
    steps: int
    """That all means are over: those that count and are whole in every rank's trace."""
    step_ms: float
    late_ns: Ints
    """Shape (ranks, all steps): how long the others waited for each rank in each step; 0 in those
    that are not among ``steps``."""
    critical: tuple[int, ...]
    """Of all steps the rank that the others waited for most; -1 where they waited for none, or the
    step is not among ``steps``."""
    verdict: Verdict
    words: str
    """The verdict in one sentence."""
    reason: Reason | None
    """Of the late rank."""
    lateness: Lateness | None
    """What the verdict rests on; its row is one of ``ranks``. ``None``: one rank, or no step."""
    collectives: tuple[CollectiveLine, ...]
    clocks: tuple[ClockFit, ...]
    clock_words: str
    notes: tuple[str, ...]
    provenance: Provenance
    """``modelled`` where one rank alone was recorded: wait is what is longer than the shortest."""
    members: tuple[Member, ...]
    matched: Matched | None
    matched_rows: tuple[int, ...]
    """Row of ``matched`` of each of ``ranks``."""
    wait_spans: tuple[Spans, ...]
    """Of every rank, on its own axis: when it waited in a collective and none transferred."""
    gpus: tuple[RankGpu, ...] = ()
    """Of every rank; empty where the run has no samples of GPUs."""

    def renamed(self, labels: Mapping[str, str]) -> RanksReport:
        """The same with other labels of its engines (old → new)."""
        members = tuple(replace(m, engine=labels.get(m.engine, m.engine)) for m in self.members)
        title = ", ".join(dict.fromkeys(m.engine for m in members))
        return replace(self, members=members, title=title)

    def fields(self, line: RankLine) -> dict[str, Any]:
        """Of one of its ranks, name → value, with ``Unavailable`` for what is not known."""
        found = asdict(line)
        if self.provenance == "modelled":
            why = Unavailable("one rank alone was recorded")
            found |= {"late_ms": why, "late_steps": why, "unmatched": why}
        if line.steps is None:
            found["steps"] = Unavailable("it has no steps of its own: another rank's are used")
        return found

    @property
    def complete(self) -> bool:
        """Were all ranks recorded? Else waiting for those that were not looks like transfer."""
        return self.provenance == "measured" and len(self.ranks) == self.world

    @property
    def nvlink_gb_s(self) -> Maybe:
        """What the slowest of its GPUs can send: bus bandwidth cannot be more."""
        rates = [gpu.nvlink_gb_s for gpu in self.gpus]
        known = [rate for rate in rates if not isinstance(rate, Unavailable)]
        if not rates:
            return Unavailable("the run has no samples of its GPUs")
        if len(known) < len(rates):
            return Unavailable("NVML reports no active NVLink")
        return min(known)
