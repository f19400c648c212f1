"""Processes of a run: of one engine, and of a recorded program. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankProcess:
    """One of the processes that compute a step together."""

    rank: int
    pid: int
    device: str
    """``cuda:1``, ``cpu``."""


@dataclass(frozen=True)
class RecordedProcess:
    """One process image of a recorded program: with GPU work, or NVTX ranges. Texts are untrusted.

    Times are absolute CLOCK_MONOTONIC when written and ns since the run's start when read.
    """

    process: int
    """``globalPid >> 24`` of its rows (``schema.process_number``)."""
    engine_id: int | None
    """``None``: no work on a GPU, so no engine."""
    pid: int
    parent: int
    """Process id of its parent."""
    label: str
    executable: str
    command: list[str]
    rank: int | None
    """``RANK``, as torchrun and others set it."""
    started_ns: int
    first_ns: int
    """Start of its first activity or range."""
    last_ns: int
    """End of its last one."""
    kernels: int
    copies: int
    """Memory copies and sets."""
    calls: int
    ranges: int
    dropped: int
    """Records that CUPTI had no buffer for."""
    ended: bool
    """It said goodbye; if not, it was killed, replaced itself, or left by ``_exit``."""
    library: str
    """The CUPTI that recorded."""
    local_rank: int | None = None
    """``LOCAL_RANK``."""
    world_size: int | None = None
    """``WORLD_SIZE``."""
    devices: dict[str, str] = field(default_factory=dict)
    """CUDA ordinal of the process → UUID of the GPU, as NVML spells it."""
