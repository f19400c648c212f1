"""What a rule looks at, and what it may say."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.analysis.bandwidth.roofline import Bandwidth
from llmprof.analysis.device.gaps import GapReport
from llmprof.analysis.device.kernels import KernelReport, TracedRound
from llmprof.analysis.host.causes import GapCauses
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.timing.conditions import Conditions
from llmprof.analysis.timing.cpu import CpuConditions
from llmprof.analysis.timing.steps import EngineSteps
from llmprof.analysis.view.roles import RoleRow
from llmprof.records import EngineInfo, Maybe, Unavailable

Confidence = Literal["high", "medium", "low"]
Cause = Literal[
    "launch-bound", "late replay", "sync", "host work", "idle", "fell off the graph",
    "below the ceiling", "small kernels", "throttled", "warm-up", "outliers", "context",
    "late rank", "uneven ranks", "exposed communication",
]  # fmt: skip

LONGEST_COMMAND: Final = 160
LEAST_SHARE: Final = 0.02
"""Of a step: what could win less is not said."""


@dataclass(frozen=True)
class Finding:
    """One statement. Texts are as recorded: make them printable to show them."""

    cause: Cause
    engine: str
    says: str
    """One sentence."""
    ms_per_token: Maybe
    """To be won: ms a decode step, which is ms a token of each sequence."""
    share: Maybe
    """``ms_per_token`` of the step, 0–1."""
    how: str
    """What the number is: ``at most``, or how it was come by."""
    evidence: tuple[str, ...]
    """Numbers that it rests on, the most important first."""
    confidence: Confidence
    why: str
    """For the confidence."""
    next: str
    """The command to run next."""
    step: int | None = None
    """Traced step to look at, from 1; ``None``: the median one."""
    kernel: str | None = None
    """Short name of the kernel to look at."""
    gap: bool = False
    """Is the evidence idle time: the widest gap of the step?"""
    lane: str | None = None
    """Label of the engine whose timeline has the evidence; ``None``: that of ``engine``."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One engine of one run: everything that rules read."""

    label: str
    file: str
    """As the user named it."""
    engine: str
    """Its name, whatever the label."""
    command: tuple[str, ...]
    """That the run was made with; empty where llmprof did not drive the engine."""
    program: tuple[str, ...]
    """That was recorded, as its command line; empty for any other."""
    info: EngineInfo | None
    steps: EngineSteps
    """Timing pass."""
    timed_ns: Maybe
    """Mean untraced step at the positions that were traced."""
    conditions: Conditions | Unavailable
    cpu: CpuConditions | Unavailable
    max_sm_clock_mhz: float | None
    bandwidth: Bandwidth
    round: TracedRound | Unavailable
    kernels: KernelReport | Unavailable
    gaps: GapReport | Unavailable
    causes: GapCauses | Unavailable
    roles: tuple[RoleRow, ...] | Unavailable
    dram: KernelBandwidth | Unavailable

    @cached_property
    def busy_ms(self) -> float | None:
        """Of a traced step; ``None`` where it is not known."""
        if isinstance(self.kernels, Unavailable):
            return None
        value = self.kernels.busy_ms_per_step
        return None if isinstance(value, Unavailable) else value

    @cached_property
    def traced_ms(self) -> float | None:
        if isinstance(self.kernels, Unavailable):
            return None
        value = self.kernels.wall_ms_per_step
        return None if isinstance(value, Unavailable) else value

    @cached_property
    def step_ms(self) -> float | None:
        """The step that savings are a share of: untraced where there is a timing pass."""
        if not isinstance(self.timed_ns, Unavailable):
            return self.timed_ns / 1e6
        if self.traced_ms is not None:
            return self.traced_ms
        median = self.steps.step_ns
        return None if isinstance(median, Unavailable) else median / 1e6

    @property
    def timed(self) -> bool:
        """Is there an untraced step to hold the traced one against?"""
        return not isinstance(self.timed_ns, Unavailable)

    @cached_property
    def idle_ms(self) -> float | None:
        """Of a step, without what tracing adds where that is known: untraced step − busy."""
        if self.busy_ms is None or self.step_ms is None:
            return None
        return max(0.0, self.step_ms - self.busy_ms)

    @cached_property
    def idle_scale(self) -> float:
        """From traced to untraced idle time, at most 1."""
        if self.idle_ms is None or self.traced_ms is None or self.busy_ms is None:
            return 1.0
        traced = self.traced_ms - self.busy_ms
        return min(1.0, self.idle_ms / traced) if traced > 0 else 1.0

    @cached_property
    def work_scale(self) -> float:
        """From traced work to what fits into the untraced step, at most 1: a traced pass may have
        run at lower clocks."""
        if not self.step_ms or not self.busy_ms:
            return 1.0
        return min(1.0, self.step_ms / self.busy_ms)

    @property
    def idle_words(self) -> str:
        """How idle time is known."""
        if self.timed:
            return "idle = untraced step − kernels"
        return "as traced: tracing is part of it"

    @property
    def name(self) -> str:
        """The file, as an argument of a command."""
        return shlex.quote(self.file)

    def again(self, *options: str) -> str:
        """The run's own command with other options; without a command, how to look at the file."""
        if not self.command:
            return f"llmprof open {self.name}"
        text = same_run(self.command, *options)
        return text if len(text) <= LONGEST_COMMAND else f"llmprof … {shlex.join(options)}"

    def worth(self, ms: float | None) -> bool:
        """Is so much of a step worth a line?"""
        return ms is not None and bool(self.step_ms) and ms >= LEAST_SHARE * (self.step_ms or 0.0)

    def share(self, ms: float) -> Maybe:
        """Of the step, 0–1."""
        if not self.step_ms:
            return Unavailable("the length of a step is not known")
        return ms / self.step_ms


@dataclass(frozen=True, eq=False)
class GroupSubject:
    """A group of ranks of one run: what rules about ranks read."""

    report: RanksReport
    file: str
    """As the user named it."""
    step_ms: float
    """That savings are a share of: untraced where there is a timing pass."""
    timed: bool
    """Is that an untraced step?"""
    command: tuple[str, ...] = ()
    """That the run was made with; empty where llmprof did not drive the engine."""
    program: tuple[str, ...] = ()
    """That was recorded, as its command line."""
    primary: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Label of each of its engines → process and device that the engine's idle time is of."""
    beside: tuple[str, ...] = ()
    """What communication costs the engines beside it, a line each."""

    @property
    def look(self) -> str:
        """How to look at the file."""
        return f"llmprof open {shlex.quote(self.file)}   # page ranks"

    def worth(self, ms: float) -> bool:
        """Is so much of a step worth a line?"""
        return self.step_ms > 0 and ms >= LEAST_SHARE * self.step_ms

    def lane(self, rank: int) -> str:
        """Label of the engine whose timeline has that rank."""
        return next(m.engine for m in self.report.members if m.rank == rank)


def same_run(command: tuple[str, ...], *options: str) -> str:
    """A run's own command with other options, and without its output file."""
    own: list[str] = []
    skip = False
    for word in command[1:]:
        # A second value of an option would win, and the file would be there already.
        name = word.partition("=")[0]
        if skip or name in (*options[:1], "-o", "--output"):
            skip = not skip and "=" not in word
            continue
        own.append(word)
    return shlex.join(["llmprof", *own, *options])
