"""``--bandwidth``: the GPUs' DRAM and SM counters, sampled while the program runs."""

from __future__ import annotations

from collections.abc import Sequence

from llmprof.records import GpuDevice, Missing, PmRound, Unavailable
from llmprof.runfile.schema import PM_ROUNDS
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pm.tracer import PmTracer

INTERVAL_NS = 200_000
"""A sample takes the sampler 55–80 µs to evaluate."""
EXPECTED_S = 120.0
"""The sampler makes room for so long; what comes later is dropped and counted."""


class BandwidthSampling:
    """A sampler a GPU. What one refuses is recorded with its reason."""

    def __init__(self, devices: Sequence[GpuDevice], gpus: frozenset[int] | None) -> None:
        wanted = [d.index for d in devices if gpus is None or d.index in gpus]
        self._tracers = {index: PmTracer(index, INTERVAL_NS, further=True) for index in wanted}
        self._running: list[int] = []
        self.missing: list[Missing] = []
        if not wanted:
            self.missing.append(Missing("run", "pm", "NVML shows no GPU to sample"))

    @property
    def pids(self) -> list[int]:
        """The samplers' processes."""
        return [tracer.pid for tracer in self._tracers.values() if tracer.pid is not None]

    def start(self) -> None:
        """Takes a second or so a GPU."""
        for index, tracer in self._tracers.items():
            why = tracer.start_round(EXPECTED_S)
            if why is None:
                self._running.append(index)
            else:
                self.missing.append(Missing(f"gpu{index}", "pm", why.reason))

    def stop(self, writer: RunFileWriter | None) -> None:
        """End sampling, write what came, give the counters back.

        Args:
            writer: ``None``: nothing can be written any more.

        Raises:
            RunFileError: the run file cannot be written.
        """
        try:
            for index in self._running:
                samples = self._tracers[index].stop_round()
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
            self._running = []
            for tracer in self._tracers.values():
                tracer.close()
