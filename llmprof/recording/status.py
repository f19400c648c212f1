"""What a recording says of itself: while it runs, and at its end. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmprof.records import EngineRecord, GpuSample


@dataclass(frozen=True)
class Lane:
    """One recorded process."""

    label: str
    kernels: int
    ranges: int
    worked: bool
    """It ran something on a GPU."""


@dataclass(frozen=True)
class Status:
    """What a live view shows; counts are those that are in the run file or on their way."""

    seconds: float
    kernels: int
    steps: int
    """NVTX ranges of the most frequent text that says step; 0: none does."""
    window_open: bool
    lanes: tuple[Lane, ...]
    bytes_read: int
    samples: tuple[GpuSample, ...]
    """The newest of each GPU."""
    said: tuple[str, ...]
    """Lines for the user, newest last."""


@dataclass
class Outcome:
    exit_code: int
    engines: list[EngineRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
