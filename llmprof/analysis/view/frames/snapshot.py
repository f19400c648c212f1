"""The frozen value that holds all one TUI frame shows.

The live TUI and the replaying TUI read through the same ``SnapshotSource``; neither knows whether
the run is still going.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmprof.records import EngineState, GpuDevice, GpuSample, Maybe, RunState, Unavailable

if TYPE_CHECKING:
    from llmprof.analysis.view.traced import RunTrace, Tell

NOT_YET = Unavailable("not measured yet")


@dataclass(frozen=True)
class EngineView:
    """One engine's column: phase, progress, latest steps, statistics so far.

    Latencies in ms, rates in tokens/s. ``Unavailable`` says why a number is missing.
    """

    engine_id: int
    label: str
    detail: str
    """Engine and model in a few words: ``torch 2.13 · fp32 · cpu``."""
    state: EngineState
    phase: str
    """What it does now: ``loading``, ``warm-up``, ``timing 3/8``, ``traced``, ``waiting``…"""
    progress: float | None
    """Share of the phase done, 0–1; ``None`` where it cannot be known."""
    step_ms: tuple[float, ...] = ()
    """Latency of every decode step of the round on show, oldest first (current or last round)."""
    round_label: str = ""
    """Which round ``step_ms`` shows: ``round 3/8``."""
    steps_done: int = 0
    """Timing-pass decode steps so far, all rounds."""
    tok_s: Maybe = NOT_YET
    """Median over finished timing rounds of tokens/s while decoding."""
    tok_s_low: Maybe = NOT_YET
    tok_s_high: Maybe = NOT_YET
    ttft_ms: Maybe = NOT_YET
    prefill_tok_s: Maybe = NOT_YET
    itl_p50_ms: Maybe = NOT_YET
    itl_p95_ms: Maybe = NOT_YET
    itl_p99_ms: Maybe = NOT_YET
    itl_max_ms: Maybe = NOT_YET
    bandwidth_gb_s: Maybe = NOT_YET
    """Modelled: bytes read a step × steps a second of ``tok_s``."""
    roofline_share: Maybe = NOT_YET
    """``bandwidth_gb_s`` / peak bandwidth, 0–1."""
    measured_gb_s: Maybe = NOT_YET
    """NVML GPM: share of cycles in which DRAM was busy × peak."""
    joule_per_token: Maybe = NOT_YET
    slowdown: Maybe = NOT_YET
    """Traced median step / timing median step."""
    text: str = ""
    """Decoded text of a round (already printable)."""
    failure: str = ""


@dataclass(frozen=True)
class GpuView:
    """The GPU panel: one device's latest sample and a short history, or why there is none."""

    device: GpuDevice | None
    latest: GpuSample | None
    history: tuple[GpuSample, ...] = ()
    """Oldest first, at most 240."""
    decoding: tuple[tuple[str, tuple[GpuSample, ...]], ...] = ()
    """Of a run that is over: (engine, its samples while it decoded in rounds of one pass)."""
    throttle: tuple[str, ...] = ()
    """Names of the active throttle reasons."""
    unavailable: str = ""
    """Why the whole panel is empty (no GPU, no NVML)."""
    missing: tuple[tuple[str, str], ...] = ()
    """Single fields that NVML did not give: (field, reason)."""
    pass_name: str = "timing"
    """Of the rounds of ``decoding``."""
    why_not_decoding: str = ""
    """Of a run that is over: why ``decoding`` is empty."""


@dataclass(frozen=True)
class PairView:
    """Engine ``b`` against engine ``a``, from paired rounds."""

    a: str
    b: str
    ratio: Maybe
    """tok/s of b / tok/s of a; > 1: b is faster."""
    low: Maybe
    high: Maybe
    difference_seen: bool
    verdict: str
    """``llamacpp is 3.1× as fast as torch (95 %: 3.0–3.2)`` or ``no difference seen between …``."""
    common_prefix: int | None = None
    """Greedy tokens equal from the start, where both hold the same weights."""
    agreement: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """All that one frame shows. Two equal snapshots make the same frame."""

    title: str
    state: RunState
    message: str
    workload: str
    """``prompt 7 · decode 128 · batch 1 · 8 rounds``."""
    elapsed_s: float
    engines: tuple[EngineView, ...]
    gpus: tuple[GpuView, ...]
    pairs: tuple[PairView, ...] = ()
    warnings: tuple[str, ...] = ()
    log: tuple[str, ...] = field(default=())
    """Last few lines of what happened (already printable)."""
    file: str = ""
    """Path of the run file."""
    what: str = ""
    """Model, bits a weight and GPU, as far as engines say: ``llama2-7b · 16 bits · H100 80GB``."""
    goal: str = ""
    """How far a timing pass that precision or time ends is from its end; empty otherwise."""


class SnapshotSource(Protocol):
    """Where the TUI's frames come from: a running session or a run file."""

    live: bool

    def snapshot(self) -> Snapshot:
        """The current frame's value; cheap enough for 4 Hz, thread-safe."""

    def outline(self) -> RunTrace | None:
        """What is known of the trace at once: the steps. ``None``: nothing yet."""

    def trace(self, tell: Tell = ...) -> RunTrace | Unavailable:
        """The traced pass of a run that is over; may take a second, from any one thread."""

    def stop(self) -> None:
        """Ask a running session to end cleanly; no-op for a file."""
