"""The sampled host stacks of one traced round as a row of the timeline, at every level of detail.

A sample stands for the time around it: half the sampling interval to both sides, less where the
next one is nearer. What no sample stands for stays unknown. As for kernels (``timeline_lod``), each
kind of host time and each function has a curve, so a cell's shares are exact at any zoom.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llmprof.analysis.host.causes import READ_NS
from llmprof.analysis.host.frames import Kind, label
from llmprof.analysis.host.stacks import HostTrace, StepSample
from llmprof.analysis.timeline.lod import Curve
from llmprof.runfile.trace.rows import Ints

MOST_FRAMES = 40
"""Functions with a curve of their own, the most frequent; no other one is named."""


@dataclass(frozen=True, eq=False)
class HostLane:
    """Where the decoding thread was."""

    kinds: dict[Kind, Curve]
    """In order of their time."""
    frames: dict[tuple[Kind, str], Curve]
    """(kind, ``function (file)`` of the innermost frame) → when; the most frequent ones."""

    @classmethod
    def of(cls, host: HostTrace) -> HostLane:
        samples, record = host.samples, host.record
        width = min(READ_NS, host.sampled.tick_ns)
        start, end = stretches(
            np.array([s.time_ns for s in samples], np.int64) - width // 2,
            1_000_000_000 // max(1, host.sampled.rate_hz),
            (record.stamps_ns[0], record.stamps_ns[-1]),
        )
        kinds = [kind(s) for s in samples]
        names = [label(s.stack[0], with_line=False) if s.stack else "" for s in samples]
        frames = _curves([*zip(kinds, names, strict=True)], start, end)
        return cls(_curves(kinds, start, end), dict([*frames.items()][:MOST_FRAMES]))


def kind(sample: StepSample) -> Kind:
    """What a sample counts for where it must be one thing."""
    return "gil" if sample.gil > 0.5 else sample.kind


def stretches(times: Ints, interval_ns: int, bounds: tuple[int, int]) -> tuple[Ints, Ints]:
    """(start, end) of what each of the ascending moments stands for, within ``bounds``."""
    between = (times[:-1] + times[1:]) // 2
    start, end = times - interval_ns // 2, times + interval_ns // 2
    start[1:] = np.maximum(start[1:], between)
    end[:-1] = np.minimum(end[:-1], between)
    return np.clip(start, *bounds), np.clip(end, *bounds)


Key = TypeVar("Key", bound=Hashable)


def _curves(keys: Sequence[Key], start: Ints, end: Ints) -> dict[Key, Curve]:
    """A curve for each key, by their whole time."""
    number: dict[Key, int] = {}
    group = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
    found = []
    for key, n in number.items():
        mine = np.flatnonzero((group == n) & (end > start))
        found.append((key, Curve.of(start[mine], end[mine])))
    found.sort(key=lambda pair: -int(pair[1].before_ns[-1]))
    return dict(found)
