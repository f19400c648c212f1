"""``--bandwidth``: the GPUs' DRAM and SM counters, sampled while the program runs."""

from __future__ import annotations

from collections.abc import Sequence

from llmprof.records import GpuDevice, Missing, PmRound, Unavailable
from llmprof.runfile.schema import PM_ROUNDS
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pm.tracer import PmSamples, PmTracer

INTERVAL_NS = 200_000
"""A sample takes the sampler 55–80 µs to evaluate."""
LONGEST_S = 120.0
"""Of the window; at 5 kHz the samples of so long take 50 MB in this process."""


class BandwidthSampling:
    """A sampler a GPU. What one refuses is recorded with its reason.

    Counters are held from ``open`` on, since that takes a second or so a GPU, and count while the
    window is open: the first time that it is, and ``LONGEST_S`` at most.
    """

    def __init__(self, devices: Sequence[GpuDevice], gpus: frozenset[int] | None) -> None:
        wanted = [d.index for d in devices if gpus is None or d.index in gpus]
        self._tracers = {index: PmTracer(index, INTERVAL_NS, further=True) for index in wanted}
        self._running: list[int] = []
        self._begun_s: float | None = None
        self._ended = False
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

    def follow(self, window_open: bool, now_s: float) -> str:
        """Begin with the window and end with it.

        Args:
            now_s: ``time.monotonic()``.

        Returns:
            What is to be told, or nothing.
        """
        if self._begun_s is None:
            if window_open:
                self._begin(now_s)
        elif not self._ended:
            late = now_s - self._begun_s > LONGEST_S
            if late or not window_open:
                self._end()
            if late and window_open and self._found:
                return (
                    f"the GPUs' counters were sampled for the first {LONGEST_S:.0f} s only"
                    " (--after and --for choose others)"
                )
        return ""

    def _begin(self, now_s: float) -> None:
        self._begun_s = now_s
        refused = {m.scope for m in self.missing}
        for index, tracer in self._tracers.items():
            if f"gpu{index}" in refused:
                continue
            why = tracer.start_round(LONGEST_S)
            self._note(index, why)
            if why is None:
                self._running.append(index)

    def _end(self) -> None:
        self._ended = True
        for index in self._running:
            self._found[index] = self._tracers[index].stop_round()
        self._running = []

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
        if self._begun_s is None and self._tracers and not self.missing:
            reason = "the window did not open: nothing was sampled"
            self.missing.append(Missing("run", "pm", reason))
        try:
            self._end()
            for index, samples in self._found.items():
                if isinstance(samples, Unavailable):
                    self.missing.append(Missing(f"gpu{index}", "pm", samples.reason))
                elif writer is not None:
                    sampled = PmRound(
                        round_id=PM_ROUNDS + index,
                        device=index,
                        interval_ns=samples.interval_ns,
                        clock=samples.clock.method,
                        clock_error_ns=samples.clock.error_ns,
                        dropped=samples.dropped,
                        overflow=samples.overflow,
                    )
                    columns = {
                        "start": samples.start_ns,
                        "end": samples.end_ns,
                        "dram_pct": samples.dram_pct,
                        "dram_read_pct": samples.dram_read_pct,
                        "sm_active_pct": samples.sm_active_pct,
                        **samples.further,
                    }
                    writer.put_pm_round(sampled, columns)
        finally:
            self._found = {}
            for tracer in self._tracers.values():
                tracer.close()
