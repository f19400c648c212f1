"""``--bandwidth``: the GPUs' DRAM and SM counters, sampled while the program runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llmprof.ingest.pm_samples import put_pm_samples
from llmprof.machine import unavailable
from llmprof.recording.sampled.stretches import Spread, Stretches
from llmprof.records import GpuDevice, Missing, Unavailable
from llmprof.runfile.schema import PM_ROUNDS, PM_STRETCH
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.copy_bandwidth import measure_copy_bandwidth
from llmprof.tracers.pm.tracer import PmSamples, PmTracer

INTERVAL_NS = 200_000
"""A sample takes the sampler 55–80 µs to evaluate."""
SPREAD = Spread(first_s=60, each_s=10, every_s=60, most_s=240)
"""The samples of a minute at 5 kHz take 25 MB in the sampler's process."""


def copies(devices: Sequence[GpuDevice], gpus: frozenset[int] | None) -> dict[str, Any]:
    """What a copy reaches on each GPU, before the program starts: a second a GPU, all at once."""

    def on(device: GpuDevice) -> Any:
        copy = measure_copy_bandwidth(0, device.uuid)
        return unavailable(copy.reason) if isinstance(copy, Unavailable) else copy.gb_s

    wanted = [device for device in devices if gpus is None or device.index in gpus]
    names = [f"cuda:{device.index}" for device in wanted]
    with ThreadPoolExecutor(max(1, len(wanted))) as pool:
        return dict(zip(names, pool.map(on, wanted), strict=True))


class BandwidthSampling:
    """A sampler a GPU. What one refuses is recorded with its reason.

    Counters are held from ``open`` on, since that takes a second or so a GPU, and count in
    stretches of the window (``Stretches``).
    """

    def __init__(self, devices: Sequence[GpuDevice], gpus: frozenset[int] | None) -> None:
        wanted = [d.index for d in devices if gpus is None or d.index in gpus]
        self._tracers = {index: PmTracer(index, INTERVAL_NS, further=True) for index in wanted}
        self._stretches = Stretches(SPREAD)
        self._running: list[int] = []
        self._began = False
        self._number = 0
        self._stopping: threading.Thread | None = None
        self._found: dict[int, PmSamples | Unavailable] = {}
        self.missing: list[Missing] = []
        if not wanted:
            self.missing.append(Missing("run", "pm", "NVML shows no GPU to sample"))

    @property
    def pids(self) -> list[int]:
        """The samplers' processes."""
        return [tracer.pid for tracer in self._tracers.values() if tracer.pid is not None]

    def open(self) -> None:
        """Take the counters, before the program starts."""
        for index, tracer in self._tracers.items():
            self._note(index, tracer.open())

    def follow(self, window_open: bool, now_s: float, writer: RunFileWriter) -> str:
        """Begin and end stretches, write what one brought.

        Args:
            now_s: ``time.monotonic()``.

        Returns:
            What is to be told, or nothing.

        Raises:
            RunFileError: the run file cannot be written.
        """
        told = self._stretches.thinned
        wanted = self._stretches.wanted(window_open, now_s)
        if self._stopping is not None:
            if not self._stopping.is_alive():
                self._collect(writer)
        elif wanted and not self._running:
            self._begin()
        elif not wanted and self._running:
            self._end()
        is_thinned = self._stretches.thinned and not told and self._began
        return f"the GPUs' counters are sampled in {SPREAD.words}" if is_thinned else ""

    def _begin(self) -> None:
        self._began = True
        refused = {m.scope for m in self.missing}
        for index, tracer in self._tracers.items():
            if f"gpu{index}" in refused:
                continue
            why = tracer.start_round(SPREAD.first_s)
            self._note(index, why)
            if why is None:
                self._running.append(index)

    def _end(self) -> None:
        """On a thread: the sampler needs a second and more to hand over a minute of samples."""
        self._stopping = threading.Thread(target=self._stop_all, daemon=True)
        self._stopping.start()

    def _stop_all(self) -> None:
        for index in self._running:
            self._found[index] = self._tracers[index].stop_round()

    def _collect(self, writer: RunFileWriter | None) -> None:
        if self._stopping is None:
            return
        self._stopping.join()
        found, self._found = self._found, {}
        self._stopping, self._running = None, []
        number, self._number = self._number, self._number + 1
        for index, samples in found.items():
            if isinstance(samples, Unavailable):
                self.missing.append(Missing(f"gpu{index}", "pm", samples.reason))
            elif writer is not None:
                put_pm_samples(writer, PM_ROUNDS + PM_STRETCH * number + index, index, samples)

    def _note(self, index: int, why: Unavailable | None) -> None:
        if why is not None:
            self.missing.append(Missing(f"gpu{index}", "pm", why.reason))

    def stop(self, writer: RunFileWriter | None) -> None:
        """End sampling, write what came, give the counters back.

        Args:
            writer: ``None``: nothing can be written any more.

        Raises:
            RunFileError: the run file cannot be written.
        """
        if not self._began and self._tracers and not self.missing:
            reason = "the window did not open: nothing was sampled"
            self.missing.append(Missing("run", "pm", reason))
        try:
            if self._running and self._stopping is None:
                self._end()
            self._collect(writer)
        finally:
            for tracer in self._tracers.values():
                tracer.close()
