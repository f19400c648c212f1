"""What a rank behind 0 does so that it is seen: kernels of its own process, the child that dates
py-spy's samples of it. For the processes of ranks, whatever they compute.

Answers are facts for rank 0; ``unavailable`` says why there are no kernels, and is empty where a
round began.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.records import Unavailable
from llmprof.tracers.pyspy import metronome

if TYPE_CHECKING:
    from llmprof.tracers.cupti.tracer import CuptiTracer


class RankTracing:
    """Nothing is recorded before ``start``."""

    def __init__(self) -> None:
        self._tracer: CuptiTracer | None = None
        self._untraced = "kernels of this rank were not recorded"
        self._beat: subprocess.Popen[bytes] | None = None

    def start(self, spool: str, level: str) -> str:
        """Before CUDA, for kinds must be on before the context and the first graph. Why kernels
        cannot be recorded, else nothing."""
        from llmprof.tracers.cupti.tracer import LEVELS, CuptiTracer

        tracer = CuptiTracer(Path(spool), LEVELS[level])
        why = tracer.start()
        if why is not None:
            self._untraced = why.reason
            return why.reason
        self._tracer = tracer
        return ""

    def begin(self, serial: int) -> dict[str, Any]:
        """A round begins; the GPU has nothing to do."""
        begun = None if self._tracer is None else self._tracer.begin_round(serial)
        return {"unavailable": begun.reason if isinstance(begun, Unavailable) else ""}

    def end(self, serial: int) -> dict[str, Any]:
        """The round is over; the GPU has nothing to do."""
        if self._tracer is None:
            return {"unavailable": self._untraced}
        facts = self._tracer.end_round(serial)
        return {"unavailable": facts.reason} if isinstance(facts, Unavailable) else facts

    def metronome(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Let py-spy in, and start the child that dates its samples."""
        metronome.let_read(ask["reader"])
        self._beat = metronome.spawn(ask["board"], ask["tick_ns"], ask["reader"])
        return {"pid": self._beat.pid}

    def stop_metronome(self) -> None:
        if self._beat is not None:
            self._beat.kill()
            self._beat.wait()

    def close(self) -> None:
        """Write what was recorded."""
        if self._tracer is not None:
            self._tracer.close()
