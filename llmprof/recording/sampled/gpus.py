"""Samples of the GPUs between two looks of the recording."""

from __future__ import annotations

import threading

from llmprof.records import GpuSample, Warned
from llmprof.runfile.writing.writer import RunFileWriter


class GpuSamples:
    """``take`` and ``hear`` are for NVML's thread, the rest for the recording's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[GpuSample] = []
        self._newest: dict[int, GpuSample] = {}
        self._heard: list[tuple[str, str]] = []

    def take(self, samples: list[GpuSample]) -> None:
        with self._lock:
            self._waiting += samples
            self._newest.update({s.device: s for s in samples})

    def hear(self, scope: str, text: str) -> None:
        """A warning."""
        with self._lock:
            self._heard.append((scope, text))

    def newest(self) -> tuple[GpuSample, ...]:
        """Of each GPU, by its number."""
        with self._lock:
            return tuple(self._newest[device] for device in sorted(self._newest))

    def save(self, writer: RunFileWriter | None) -> None:
        """What waits is written, or forgotten where there is no writer.

        Raises:
            RunFileError: the run file cannot be written.
        """
        with self._lock:
            samples, self._waiting = self._waiting, []
            heard, self._heard = self._heard, []
        if writer is None:
            return
        writer.put_gpu_samples(samples)
        for scope, text in heard:
            writer.put_warning(Warned(scope, text))
