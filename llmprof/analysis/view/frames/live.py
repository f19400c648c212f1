"""Where a TUI's frames come from: ``LiveFold`` while a session runs, ``RunDataSource`` afterwards.

``LiveFold`` fills the methods of ``session.events.SessionObserver`` without importing it (the
analysis knows no session) and grows the same ``RunData`` that the reader makes of a file.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmprof.analysis.view.frames.frame import Activity, build_snapshot
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import Report, build
from llmprof.analysis.view.traced import RunTrace, Tell, quiet
from llmprof.errors import LlmprofError
from llmprof.records import (
    EngineRecord,
    GpuDevice,
    GpuSample,
    Missing,
    PassName,
    RoundRecord,
    RunData,
    RunInfo,
    RunState,
    Unavailable,
    Warned,
)

LOG_LINES = 50


def goal_words(half_width: float | None, wanted: float, left_s: float) -> str:
    """``34 s left · ±1.8 % (goal ±1 %)``: of the timing pass, its widest interval, the one that
    ends the run."""
    width = "no interval yet" if half_width is None else f"±{half_width * 100:.1f} %"
    return f"{math.ceil(left_s)} s left · {width} (goal ±{wanted * 100:g} %)"


class LiveFold:
    """Takes a session's events on its thread, gives snapshots to the UI's.

    The lock is held for copying references only: neither side waits for the other's arithmetic.

    Args:
        on_stop: asks the session to end; called on the UI's thread.
        clock: CLOCK_MONOTONIC in ns.
    """

    def __init__(
        self,
        on_stop: Callable[[], None] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.live = True
        self.leave = False
        """Told to end by a signal: the TUI goes when the run is over."""
        self._on_stop = on_stop
        self._clock = clock
        self._lock = threading.Lock()
        self._data: RunData | None = None
        self._activities: dict[int, Activity] = {}
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._gpu_unavailable = "GPUs were not looked for yet"
        self._finished_ns: int | None = None
        self._goal = ""
        """How far the timing pass is from its goal, in words."""
        self._longest_s = 0.0
        self._of_time: float | None = None
        """Share of the timing pass's time that is over, where time or precision ends it."""
        self._version = 0
        """Counts what changes the report: a finished round, an engine's state, a warning."""
        self._built: tuple[int, Report] | None = None
        self._trace: RunTrace | Unavailable | None = None

    # SessionObserver: the session's thread.

    def run_started(self, info: RunInfo, engines: list[EngineRecord], file: str) -> None:
        with self._lock:
            copies = [replace(engine) for engine in engines]
            self._data = RunData(info, copies, path=file, origin_ns=info.t0_ns)
            self._version += 1

    def engine_changed(self, engine: EngineRecord) -> None:
        with self._lock:
            if self._data is None:
                return
            # A copy: the session goes on changing its own record.
            self._data.engines = [
                replace(engine) if known.engine_id == engine.engine_id else known
                for known in self._data.engines
            ]
            if engine.state in ("finished", "failed"):
                self._activities.pop(engine.engine_id, None)
            elif engine.state == "ready" and engine.engine_id in self._activities:
                # Loaded and warm: the others' turn. A finished round keeps its share.
                share = self._activities[engine.engine_id].share
                self._activities[engine.engine_id] = Activity("waiting", share)
            self._version += 1

    def progress(self, engine_id: int, phase: str, share: float | None) -> None:
        with self._lock:
            self._activities[engine_id] = Activity(phase, share)

    def round_started(self, engine_id: int, pass_name: PassName, index: int, total: int) -> None:
        phase = f"{pass_name} {index + 1}/{total}" if total > 1 else pass_name
        if not total:
            phase = f"{pass_name} {index + 1}"
        with self._lock:
            share = index / total if total else self._of_time
            self._activities[engine_id] = Activity(phase, share, pass_name, index, total)

    def round_stamps(self, engine_id: int, stamps_ns: array[int]) -> None:
        with self._lock:
            now = self._activities.get(engine_id)
            if now is None or self._data is None:
                return
            workload = self._data.info.workload
            planned = workload.get("traced_steps" if now.pass_name == "traced" else "decode_len")
            part = min(1.0, max(0, len(stamps_ns) - 1) / planned) if planned else 0.0
            share = (now.index + part) / now.total if now.total else now.share
            self._activities[engine_id] = replace(now, stamps_ns=stamps_ns, share=share)

    def round_finished(self, record: RoundRecord) -> None:
        with self._lock:
            if self._data is None:
                return
            self._data.rounds.append(record)
            before = self._activities.get(record.engine_id)
            total = before.total if before else 0
            share = min(1.0, (record.index + 1) / total) if total else self._of_time
            self._activities[record.engine_id] = Activity("waiting", share)
            self._version += 1

    def workload_changed(self, workload: dict[str, Any]) -> None:
        with self._lock:
            if self._data is not None:
                self._data.info = replace(self._data.info, workload=workload)
                if (workload.get("goal") or {}).get("ended_by"):
                    self._goal = ""
                self._version += 1

    def goal(self, half_width: float | None, wanted: float, left_s: float) -> None:
        with self._lock:
            self._goal = goal_words(half_width, wanted, left_s)
            self._longest_s = max(self._longest_s, left_s)
            self._of_time = 1 - left_s / self._longest_s if self._longest_s else None

    def gpu_devices(self, devices: list[GpuDevice], unavailable: str) -> None:
        with self._lock:
            self._gpu_unavailable = unavailable
            if self._data is not None:
                self._data.gpu_devices = list(devices)
                if unavailable:
                    self._data.missing.append(Missing("run", "nvml", unavailable))
                self._version += 1

    def gpu_samples(self, samples: list[GpuSample]) -> None:
        with self._lock:
            if self._data is not None:
                self._data.gpu_samples += samples

    def warned(self, scope: str, text: str) -> None:
        with self._lock:
            if self._data is not None:
                self._data.warnings.append(Warned(scope, text))
                self._version += 1

    def log(self, text: str) -> None:
        with self._lock:
            self._log += text.splitlines()

    def run_finished(self, state: RunState, message: str) -> None:
        with self._lock:
            self.live = False
            self._finished_ns = self._clock()
            self._activities.clear()
            if self._data is not None:
                self._data.info = replace(self._data.info, state=state, message=message)
                self._version += 1

    # SnapshotSource: the UI's thread.

    def snapshot(self) -> Snapshot:
        with self._lock:
            if self._data is None:
                return Snapshot(
                    "llmprof", "running", "starting", "", 0.0, (), (), log=tuple(self._log)
                )
            data = replace(
                self._data,
                engines=list(self._data.engines),
                rounds=list(self._data.rounds),
                gpu_samples=list(self._data.gpu_samples),
                warnings=list(self._data.warnings),
                missing=list(self._data.missing),
            )
            activities, log = dict(self._activities), tuple(self._log)
            version, unavailable, goal = self._version, self._gpu_unavailable, self._goal
            now_ns = self._finished_ns or self._clock()
        if self._built is None or self._built[0] != version:
            self._built = version, build(data)
        shot = build_snapshot(
            data, self._built[1], now_ns, activities, log=log, gpu_unavailable=unavailable
        )
        return replace(shot, goal=goal if self.live else "")

    def outline(self) -> RunTrace | None:
        return None

    def trace(self, tell: Tell = quiet) -> RunTrace | Unavailable:
        with self._lock:
            data, live = self._data, self.live
        if data is None or live:
            return Unavailable("the trace is read when the run is over")
        if self._trace is None:
            self._trace = _read_trace(data.path, None, tell)
        return self._trace

    def stop(self) -> None:
        if self._on_stop is not None and self.live:
            self._on_stop()


class RunDataSource:
    """Frames of a run that is over: one snapshot, made at the first call."""

    live = False

    def __init__(self, data: RunData) -> None:
        self._data = data
        self._snapshot: Snapshot | None = None
        self._trace: RunTrace | Unavailable | None = None

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            data = self._data
            if data.info.state == "running":
                # Its parent was killed: what is in the file is all there will be.
                message = data.info.message or "the recording was cut off"
                data = replace(data, info=replace(data.info, state="interrupted", message=message))
            ends = [r.end_ns for r in data.rounds] + [s.timestamp_ns for s in data.gpu_samples]
            now_ns = max(ends, default=data.origin_ns)
            self._snapshot = build_snapshot(data, build(data), now_ns, {})
        return self._snapshot

    @property
    def path(self) -> Path:
        return Path(self._data.path)

    @property
    def picks_steps(self) -> bool:
        """Which NVTX ranges are steps can be chosen: llmprof did not drive what was traced."""
        return self._data.info.source != "driven"

    @property
    def needs_steps(self) -> bool:
        """No ranges were sure enough to be taken for steps."""
        return self.picks_steps and not any(r.steps for r in self._data.rounds)

    def outline(self) -> RunTrace | None:
        data = self._data
        return RunTrace.outline(Path(data.path), data) if data.path else None

    def trace(self, tell: Tell = quiet) -> RunTrace | Unavailable:
        if self._trace is None:
            # Steps of a file that nsys made are those that were chosen when it was read.
            known = self._data if self._data.origin_ns == 0 else None
            self._trace = _read_trace(self._data.path, known, tell)
        return self._trace

    def stop(self) -> None:
        """Nothing runs."""


def _read_trace(path: str, known: RunData | None, tell: Tell) -> RunTrace | Unavailable:
    """``known``: what was read from the file before."""
    if not path:
        return Unavailable("the run was not saved")
    try:
        if known is None:
            known = open_run(Path(path))
        return RunTrace(Path(path), known, tell)
    except LlmprofError as why:
        return Unavailable(str(why))
