"""One place that hands each record to the run file and to whoever watches."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.ingest.pm_samples import put_pm_samples
from llmprof.records import (
    EngineRecord,
    GpuDevice,
    GpuSample,
    Missing,
    NvtxEvent,
    PassName,
    RoundRecord,
    RunInfo,
    RunState,
    Unavailable,
    Warned,
)
from llmprof.records.processes import RankProcess
from llmprof.runfile.schema import pm_round
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.session.events import SessionObserver

if TYPE_CHECKING:
    from llmprof.ingest.traced_round import Imported
    from llmprof.tracers.pm.tracer import PmSamples
    from llmprof.tracers.pyspy.chrome import HostSamples
    from llmprof.tracers.pyspy.tracer import HostPlan


class Recorder:
    """Writes from the session's thread only; GPU samples may arrive from the tracer's thread.

    Samples go to the watchers as they come and to the file between rounds: a commit during a round
    would take time from an engine that runs on the CPU.
    """

    def __init__(self, writer: RunFileWriter, observers: Sequence[SessionObserver]) -> None:
        self._writer = writer
        self._observers = observers
        self._lock = threading.Lock()
        self._fresh: list[GpuSample] = []
        self._unsaved: list[GpuSample] = []
        self._warned: set[tuple[str, str]] = set()
        self._heard: list[tuple[str, str]] = []

    def started(self, info: RunInfo, engines: list[EngineRecord], file: str) -> None:
        for engine in engines:
            self._writer.put_engine(engine)
        for observer in self._observers:
            observer.run_started(info, engines, file)

    def engine(self, record: EngineRecord) -> None:
        self._writer.put_engine(record)
        for observer in self._observers:
            observer.engine_changed(record)

    def progress(self, engine_id: int, phase: str, share: float | None) -> None:
        for observer in self._observers:
            observer.progress(engine_id, phase, share)

    def round_started(self, engine_id: int, pass_name: PassName, index: int, total: int) -> None:
        for observer in self._observers:
            observer.round_started(engine_id, pass_name, index, total)

    def stamps(self, engine_id: int, stamps_ns: array[int]) -> None:
        for observer in self._observers:
            observer.round_stamps(engine_id, stamps_ns)

    def round(self, record: RoundRecord) -> None:
        self._writer.put_round(record)
        for observer in self._observers:
            observer.round_finished(record)

    def operators(self, events: list[NvtxEvent]) -> None:
        self._writer.put_nvtx(events)

    def trace(
        self, record: RoundRecord, spool: Path, pid: int | None = None, rank: int = 0
    ) -> Imported | Unavailable:
        """Decode a traced round's spool into the file; ``pid`` of a rank behind 0."""
        from llmprof.ingest.traced_round import TraceImport

        importer = TraceImport(self._writer, record.engine_id, pid or record.pid, rank)
        return importer.round(spool, record.round_id)

    def pm_samples(
        self, record: RoundRecord, device: int, primary: int, samples: PmSamples
    ) -> None:
        """What was sampled of one GPU during a round of pass ``sampled``."""
        round_id = pm_round(record.round_id, device, primary)
        put_pm_samples(self._writer, round_id, device, samples)

    def dram_fit(self, engine: EngineRecord) -> None:
        """Fit the engine's sampled rounds once, so that whoever opens the file need not."""
        from llmprof.analysis.bandwidth.kept import VERSION, fitted
        from llmprof.runfile.reader import RunFileReader

        with RunFileReader(self._writer.path) as reader:
            found = fitted(reader, reader.run_data(), engine, self.say)
        if found is not None:
            self._writer.put_dram_fit(engine.engine_id, VERSION, found)

    def host_samples(
        self,
        record: RoundRecord,
        plan: HostPlan,
        found: HostSamples,
        cpu_ns: dict[int, int],
        cpu_wall_ns: int,
    ) -> None:
        """Host stacks sampled during a traced round, and its threads' processor time."""
        from llmprof.ingest.host_stacks import put_samples

        put_samples(self._writer, record, plan, found, cpu_ns, cpu_wall_ns)

    def rank_samples(self, record: RoundRecord, rank: RankProcess, found: HostSamples) -> None:
        """Host stacks of a rank behind 0 in the same traced round."""
        from llmprof.ingest.host_stacks import put_rank_samples

        put_rank_samples(self._writer, record, rank, found)

    def gpu_devices(self, devices: list[GpuDevice] | Unavailable) -> None:
        found = [] if isinstance(devices, Unavailable) else devices
        reason = devices.reason if isinstance(devices, Unavailable) else ""
        if found:
            self._writer.put_gpu_devices(found)
        if reason:
            self.missing([Missing("run", "nvml", reason)])
        for observer in self._observers:
            observer.gpu_devices(found, reason)

    def take_samples(self, samples: list[GpuSample]) -> None:
        """From the tracer's thread."""
        with self._lock:
            self._fresh += samples

    def hear_warning(self, scope: str, text: str) -> None:
        """From the tracer's thread."""
        with self._lock:
            self._heard.append((scope, text))

    def show_samples(self) -> None:
        """Pass new samples to the watchers (session's thread)."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        self._unsaved += fresh
        if fresh:
            for observer in self._observers:
                observer.gpu_samples(fresh)

    def save_samples(self) -> None:
        """Pass new samples on and commit all that are not in the file yet."""
        self.show_samples()
        with self._lock:
            heard, self._heard = self._heard, []
        for scope, text in heard:
            self.warning(scope, text)
        unsaved, self._unsaved = self._unsaved, []
        if unsaved:
            self._writer.put_gpu_samples(unsaved)

    def missing(self, missing: list[Missing]) -> None:
        if missing:
            self._writer.put_missing(missing)

    def warning(self, scope: str, text: str) -> None:
        """Once for each text."""
        if (scope, text) in self._warned:
            return
        self._warned.add((scope, text))
        self._writer.put_warning(Warned(scope, text))
        for observer in self._observers:
            observer.warned(scope, text)

    def worker_log(self, label: str, text: str) -> None:
        if text:
            self._writer.put_log(label, text)

    def say(self, text: str) -> None:
        for observer in self._observers:
            observer.log(text)

    def schedule(self, schedule: str) -> None:
        self._writer.set_state("running", "", schedule=schedule)

    def workload(self, workload: dict[str, Any]) -> None:
        """It is settled: round length, rounds, how the timing pass ended."""
        self._writer.set_state("running", "", workload=workload)
        for observer in self._observers:
            observer.workload_changed(workload)

    def goal(self, half_width: float | None, wanted: float, left_s: float) -> None:
        for observer in self._observers:
            observer.goal(half_width, wanted, left_s)

    def finished(self, state: RunState, message: str) -> None:
        self._writer.set_state(state, message)
        for observer in self._observers:
            observer.run_finished(state, message)
