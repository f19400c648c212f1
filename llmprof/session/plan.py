"""What a session is asked to do: a frozen value, made by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llmprof.config import EngineSpec
from llmprof.goal import Goal
from llmprof.records import BandwidthLevel, TraceLevel
from llmprof.tracers.pyspy.tracer import HostPlan
from llmprof.workload import Workload


@dataclass(frozen=True)
class Plan:
    """``models[i]`` and ``labels[i]`` belong to ``engines[i]``."""

    workload: Workload
    engines: tuple[EngineSpec, ...]
    labels: tuple[str, ...]
    models: tuple[str, ...]
    """A path or a preset, as ``LoadRequest.model`` wants it."""
    output: Path
    trace_level: TraceLevel = "kernels"
    bandwidth: BandwidthLevel = "kernels"
    capture: str = ""
    """Path of an nsys that the traced pass runs under; the trace is then nsys' own file."""
    host: HostPlan = field(default_factory=HostPlan)
    """How host stacks are sampled in the traced pass, where it has workers of its own."""
    command: tuple[str, ...] = ()
    goal: Goal = field(default_factory=lambda: Goal(rounds=16))
    """When the timing pass ends."""
    adapt: bool = False
    """May rounds be shorter than ``workload.decode_len``, where the time asks for it?"""
    stall_timeout_s: float = 300.0
    """An engine that shows no sign of life for this long has failed."""
    warmup_max_s: float = 60.0
    """Warm-up ends here, stable or not, and the run says which."""
