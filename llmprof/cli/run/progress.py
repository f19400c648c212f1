"""Progress of a headless run on stderr: a bar in a terminal, only trouble in a pipe.

One carriage return a line: tqdm and rich keep a thread beside the measurement, and estimate a time
left from one row of equal steps, which several engines' rounds are not.
"""

from __future__ import annotations

import shutil
import sys
from array import array
from typing import Any

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
        self._total = 1
        self._engines = 1
        self._done = 0
        self._so_far = ""
        self._left_s = self._longest_s = 0.0

    def run_started(self, info: RunInfo, engines: list[EngineRecord], file: str) -> None:
        self._labels = {e.engine_id: e.label for e in engines}
        self._engines = len(engines)
        self._goal(info.workload)

    def _goal(self, workload: dict[str, Any]) -> None:
        self._steps = int(workload["decode_len"])
        rounds = workload.get("rounds")
        self._total = self._engines * int(rounds) if rounds else 0

    def workload_changed(self, workload: dict[str, Any]) -> None:
        self._goal(workload)

    def goal(self, half_width: float | None, wanted: float, left_s: float) -> None:
        from llmprof.analysis.view.frames.live import goal_words

        self._so_far = goal_words(half_width, wanted, left_s)
        self._left_s = left_s
        self._longest_s = max(self._longest_s, left_s)

    def engine_changed(self, engine: EngineRecord) -> None:
        if engine.state in ("loading", "warmup"):
            self._draw(f"{engine.label}: {'warm-up' if engine.state == 'warmup' else 'loading'}", 0)

    def progress(self, engine_id: int, phase: str, share: float | None) -> None:
        self._draw(f"{self._labels[engine_id]}: {phase}", share)

    def round_started(self, engine_id: int, pass_name: PassName, index: int, total: int) -> None:
        of = f"/{total}" if total else ""
        name = "traced pass" if pass_name == "traced" else f"round {index + 1}{of}"
        self._phase = f"{self._labels[engine_id]}: {name}"
        if not self._total and self._so_far and pass_name == "timing":
            self._phase += f" · {self._so_far}"
        self._draw(self._phase, self._share(0.0))

    def round_stamps(self, engine_id: int, stamps_ns: array[int]) -> None:
        within = max(0, len(stamps_ns) - 1) / self._steps
        self._draw(self._phase, self._share(within))

    def _share(self, within: float) -> float | None:
        """Of the rounds, or of the time."""
        if self._total:
            return min(1.0, (self._done + within) / self._total)
        return 1 - self._left_s / self._longest_s if self._longest_s else None

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
