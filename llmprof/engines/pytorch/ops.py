"""Operator ranges of a torch engine on CLOCK_MONOTONIC: the kernel level on a CPU.

Imported late, by an engine.
"""

from __future__ import annotations

import time

from torch.autograd import profiler

_CLOCK = "llmprof.clock"
_READINGS = 16


class OpTrace:
    """Records every operator from ``start`` to ``stop``, nested ones too.

    Uses torch's own CPU tracer and takes its raw events: building torch's event tree costs
    seconds for a few thousand operators. Its times are wall-clock estimates from the time stamp
    counter, so the offset to CLOCK_MONOTONIC is measured inside the trace, at both ends: a named
    range begins between two clock reads, the tightest of 16 counts (about ±1 µs), and the offset
    in between is interpolated, as the wall clock may be slewed.
    """

    def __init__(self) -> None:
        # use_device None: CPU activity alone is recorded.
        self._profile = profiler.profile(use_kineto=True, use_device=None)
        self._readings: list[tuple[int, int]] = []

    def start(self) -> None:
        self._profile.__enter__()
        self._read_clock()

    def stop(self) -> list[tuple[str, int, int, int]]:
        """``(name, start_ns, end_ns, native thread id)`` in order of start.

        Names are torch's: ``aten::mm``.
        """
        self._read_clock()
        self._profile.__exit__(None, None, None)
        events = self._profile.kineto_results.events()
        marks = [event.start_ns() for event in events if event.name() == _CLOCK]
        if len(marks) != len(self._readings):
            raise RuntimeError(
                f"torch's profiler lost {len(self._readings) - len(marks)} of its clock marks"
            )
        to_monotonic = _Clock(sorted(marks), self._readings)
        found = []
        for event in events:
            name, start = event.name(), event.start_ns()
            if name != _CLOCK:
                begin = to_monotonic(start)
                # On a CPU the resource is the native thread.
                thread = event.device_resource_id()
                found.append((name, begin, begin + event.duration_ns(), thread))
        return sorted(found, key=_by_start)

    def _read_clock(self) -> None:
        for _ in range(_READINGS):
            before = time.monotonic_ns()
            with profiler.record_function(_CLOCK):
                after = time.monotonic_ns()
            self._readings.append((before, after))


class _Clock:
    """Tracer time → CLOCK_MONOTONIC, from the tightest reading at each end."""

    def __init__(self, marks: list[int], readings: list[tuple[int, int]]) -> None:
        pairs = list(zip(marks, readings, strict=True))
        self._at, self._offset = _tightest(pairs[:_READINGS])
        late, late_offset = _tightest(pairs[_READINGS:])
        self._slope = (late_offset - self._offset) / max(1, late - self._at)

    def __call__(self, tracer_ns: int) -> int:
        return tracer_ns - self._offset - round((tracer_ns - self._at) * self._slope)


def _tightest(pairs: list[tuple[int, tuple[int, int]]]) -> tuple[int, int]:
    """(tracer time, tracer - monotonic) of the reading with the shortest gap."""
    mark, (before, after) = min(pairs, key=lambda pair: pair[1][1] - pair[1][0])
    return mark, mark - (before + after) // 2


def _by_start(operator: tuple[str, int, int, int]) -> tuple[int, int]:
    return operator[1], -operator[2]  # an outer operator before those inside it
