"""What is to be recorded, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmprof.records import TraceLevel
from llmprof.tracers.pyspy.tracer import HostPlan


@dataclass(frozen=True)
class Limit:
    """``30s`` or ``200steps``; exactly one is set."""

    seconds: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class RecordPlan:
    command: tuple[str, ...]
    output: Path
    level: TraceLevel = "full"
    after: Limit | None = None
    """Recording begins then; from the start without it."""
    length: Limit | None = None
    """Recording ends so long after it began; with the program without it."""
    gpus: frozenset[int] | None = None
    """Work on other GPUs is left out; all are kept without it."""
    host: HostPlan | None = None
    bandwidth: bool = False
    """Sample the GPUs' counters too."""
    detach: bool = True
    """Where the window is closed, the recorders take CUPTI out of the program."""
    twice: bool = False
    """Run the command once more, untraced but for NVTX, to state the slowdown."""
