"""Progress of a headless run on stderr: a bar in a terminal, only trouble in a pipe.

One carriage return a line: tqdm and rich keep a thread beside the measurement, and estimate a time
left from one row of equal steps, which several engines' rounds are not.
"""

from __future__ import annotations

import shutil
import sys
from array import array

from llmprof.plaintext import one_line
from llmprof.records import (
    EngineRecord,
    GpuDevice,
    GpuSample,
    PassName,
    RoundRecord,
    RunInfo,
    RunState,
)

BAR = 24


class StderrProgress:
    """A ``SessionObserver``. In a pipe it says warnings and failures only."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._labels: dict[int, str] = {}
        self._phase = ""
        self._steps = 1
        self._rounds = 1
        self._total = 1
        self._done = 0

    def run_started(self, info: RunInfo, engines: list[EngineRecord], file: str) -> None:
        self._labels = {e.engine_id: e.label for e in engines}
        self._steps = int(info.workload["decode_len"])
        self._total = len(engines) * int(info.workload["rounds"])

    def engine_changed(self, engine: EngineRecord) -> None:
        if engine.state in ("loading", "warmup"):
            self._draw(f"{engine.label}: {'warm-up' if engine.state == 'warmup' else 'loading'}", 0)

    def progress(self, engine_id: int, phase: str, share: float | None) -> None:
        self._draw(f"{self._labels[engine_id]}: {phase}", share)

    def round_started(self, engine_id: int, pass_name: PassName, index: int, total: int) -> None:
        name = "traced pass" if pass_name == "traced" else f"round {index + 1}/{total}"
        self._phase = f"{self._labels[engine_id]}: {name}"
        self._draw(self._phase, self._done / self._total)

    def round_stamps(self, engine_id: int, stamps_ns: array[int]) -> None:
        within = max(0, len(stamps_ns) - 1) / self._steps
        self._draw(self._phase, min(1.0, (self._done + within) / self._total))

    def round_finished(self, record: RoundRecord) -> None:
        if record.pass_name == "timing":
            self._done += 1

    def gpu_devices(self, devices: list[GpuDevice], unavailable: str) -> None: ...

    def gpu_samples(self, samples: list[GpuSample]) -> None: ...

    def warned(self, scope: str, text: str) -> None:
        self._say(f"warning: {scope}: {text}")

    def log(self, text: str) -> None:
        self._say(text)

    def run_finished(self, state: RunState, message: str) -> None:
        self._clear()

    def _draw(self, text: str, share: float | None) -> None:
        if not self._tty:
            return
        width = shutil.get_terminal_size().columns
        full = int(BAR * (share or 0.0))
        bar = f"[{'#' * full}{'.' * (BAR - full)}] " if share is not None else ""
        sys.stderr.write(f"\r\x1b[K{(bar + one_line(text, 200))[: width - 1]}")
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _say(self, text: str) -> None:
        self._clear()
        print(f"llmprof: {one_line(text)}", file=sys.stderr)
