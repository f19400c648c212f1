"""What a session tells whoever watches it. The run file writer and the live view both listen."""

from __future__ import annotations

from array import array
from typing import Any, Protocol

from llmprof.records import (
    EngineRecord,
    GpuDevice,
    GpuSample,
    PassName,
    RoundRecord,
    RunInfo,
    RunState,
)


class SessionObserver(Protocol):
    """Called from the session's thread; must return at once and never raise."""

    def run_started(self, info: RunInfo, engines: list[EngineRecord], file: str) -> None: ...

    def engine_changed(self, engine: EngineRecord) -> None:
        """State, failure, info or text changed."""

    def progress(self, engine_id: int, phase: str, share: float | None) -> None:
        """``phase``: ``loading weights``, ``warm-up``…; ``share`` 0–1 or unknown."""

    def round_started(
        self, engine_id: int, pass_name: PassName, index: int, total: int
    ) -> None: ...

    def round_stamps(self, engine_id: int, stamps_ns: array[int]) -> None:
        """The stamps of the running round so far (a copy)."""

    def round_finished(self, record: RoundRecord) -> None: ...

    def workload_changed(self, workload: dict[str, Any]) -> None:
        """``RunInfo.workload`` is this from now on: the length of rounds is settled, or the timing
        pass has ended."""

    def goal(self, half_width: float | None, wanted: float, left_s: float) -> None:
        """After each round of all engines, where precision and time end the run.

        ``half_width`` of the widest interval and the ``wanted`` one, 0–1; ``left_s`` of the timing
        pass, at most.
        """

    def gpu_devices(self, devices: list[GpuDevice], unavailable: str) -> None: ...

    def gpu_samples(self, samples: list[GpuSample]) -> None: ...

    def warned(self, scope: str, text: str) -> None: ...

    def log(self, text: str) -> None: ...

    def run_finished(self, state: RunState, message: str) -> None: ...
