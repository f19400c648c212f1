"""The worker's switchboard of in-process tracers: NVTX ranges, operators, CUPTI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmprof.engines.base import Engine, OpTracedEngine
from llmprof.records import EngineInfo
from llmprof.worker.nvtx_ranges import NoRanges, open_ranges
from llmprof.worker.rounds import Ranges


@dataclass
class Found:
    """What the tracers of one round bring home."""

    ops: Sequence[tuple[str, int, int, int]] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class WorkerTracers:
    """``level`` is ``None`` for a worker that is only timed: then nothing is ever imported."""

    def __init__(self, level: str | None, spool: str | None) -> None:
        self.level = level
        self.unavailable: dict[str, str] = {}
        self.ranges: Ranges = NoRanges()
        self.wants_ops = level in ("kernels", "full")
        if level is not None:
            ranges, reason = open_ranges()
            self.ranges = ranges
            if reason:
                self.unavailable["nvtx"] = reason

    def loaded(self, engine: Engine, info: EngineInfo) -> None:
        if self.wants_ops and info.device == "cpu" and not isinstance(engine, OpTracedEngine):
            self.wants_ops = False
            self.unavailable["operators"] = "this engine's operators cannot be recorded on a CPU"
        elif info.device != "cpu":
            self.wants_ops = False

    def begin_round(self, engine: Engine, serial: int) -> None:
        if self.wants_ops and isinstance(engine, OpTracedEngine):
            engine.start_op_trace()

    def end_round(self, engine: Engine) -> Found:
        if self.wants_ops and isinstance(engine, OpTracedEngine):
            return Found(ops=engine.stop_op_trace())
        return Found()

    def close(self) -> None:
        """Nothing is open between rounds yet."""
