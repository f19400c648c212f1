"""The worker's switchboard of in-process tracers: NVTX ranges, operators, CUPTI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.engines.base import Engine, OpTracedEngine, RankedEngine
from llmprof.records import EngineInfo, Unavailable
from llmprof.worker.nvtx_ranges import NoRanges, open_ranges
from llmprof.worker.rounds import Ranges

if TYPE_CHECKING:
    from llmprof.tracers.cupti.tracer import CuptiTracer


@dataclass
class Found:
    """What the tracers of one round bring home."""

    ops: Sequence[tuple[str, int, int, int]] = ()
    """(name, start_ns, end_ns, thread id) of each operator."""
    facts: dict[str, Any] = field(default_factory=dict)
    """``cupti``: what recording took, or ``{"unavailable": reason}``; ``ranks``: what is wrong with
    the records of each further rank (empty: nothing)."""


class WorkerTracers:
    """``level`` is ``None`` for a worker that is only timed: then nothing is ever imported.

    To be made before the engine: CUPTI's kinds must be on before the CUDA context and the first
    graph capture, and never change afterwards.
    """

    def __init__(self, level: str | None, spool: str | None) -> None:
        self.unavailable: dict[str, str] = {}
        self.ranges: Ranges = NoRanges()
        self._deep = level in ("kernels", "full", "all")
        self._ops = False
        self._cupti: CuptiTracer | None = None
        self._begun: Unavailable | None = None
        if level is not None:
            ranges, reason = open_ranges()
            self.ranges = ranges
            if reason:
                self.unavailable["nvtx"] = reason
        if spool is not None and self._deep:
            from llmprof.tracers.cupti.tracer import LEVELS, CuptiTracer

            tracer = CuptiTracer(Path(spool), LEVELS[level or "kernels"])
            why = tracer.start()
            if why is None:
                self._cupti = tracer
                self.unavailable.update({f"cupti {k}": v for k, v in tracer.missing.items()})
            else:
                self.unavailable["kernels"] = why.reason

    @property
    def wants_ops(self) -> bool:
        """May operators be asked for? Known for sure only once the engine says where it runs."""
        return self._deep

    def loaded(self, engine: Engine, info: EngineInfo) -> None:
        """Operators are the kernel level of a CPU; on a GPU they would slow the host down."""
        self._ops = self._deep and info.device == "cpu" and isinstance(engine, OpTracedEngine)
        if self._deep and info.device == "cpu":
            self.unavailable["kernels"] = "the engine runs on a CPU"
            if not self._ops:
                self.unavailable["operators"] = "this engine's operators cannot be recorded"

    def begin_round(self, engine: Engine, serial: int) -> None:
        if self._cupti is not None and isinstance(engine, RankedEngine):
            engine.start_rank_traces(serial)
        self._begun = None if self._cupti is None else self._cupti.begin_round(serial)
        if self._ops and isinstance(engine, OpTracedEngine):
            engine.start_op_trace()

    def end_round(self, engine: Engine, serial: int) -> Found:
        found = Found()
        if self._ops and isinstance(engine, OpTracedEngine):
            found.ops = engine.stop_op_trace()
        if self._cupti is not None:
            result = self._cupti.end_round(serial) if self._begun is None else self._begun
            if isinstance(result, Unavailable):
                result = {"unavailable": result.reason}
            found.facts["cupti"] = result
            if isinstance(engine, RankedEngine):
                found.facts["ranks"] = engine.stop_rank_traces(serial)
        return found

    def close(self) -> None:
        if self._cupti is not None:
            self._cupti.close()
