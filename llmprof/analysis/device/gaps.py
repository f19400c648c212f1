"""Where one device waits inside the decode steps: idle gaps, and the places where they recur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.sweep import Timeline, cut, sums
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints

GapKind = Literal["before-first", "between", "after-last", "whole-step"]
"""``before-first``: from the step's start to its first work (the host gets to the first launch).
``after-last``: from its last work to its end (copying the token, waking the host, sampling there).
``between``: the next launch came too late, or waited for the host. ``whole-step``: no work.
Where steps are bounded by the device (attribution by correlation) a step ends with its last work,
so the time that the host spends between two steps is ``before-first``."""

_KINDS: tuple[GapKind, ...] = ("between", "before-first", "after-last", "whole-step")
"""By 1 × touches the step's start + 2 × touches its end."""


@dataclass(frozen=True)
class Gap:
    """One stretch of a decode step without kernel, copy or set."""

    start_ns: int
    """On the axis of the trace's rows."""
    end_ns: int
    step: int
    kind: GapKind
    after: str
    """Short name of the work before it; empty at the step's start."""
    before: str
    """Short name of the work behind it; empty at the step's end."""

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True)
class GapPlace:
    """All gaps between the same two pieces of work."""

    kind: GapKind
    after: str
    before: str
    count: int
    total_ns: int
    longest_ns: int
    ms_per_step: float
    """Mean over the traced decode steps."""
    share: float
    """Of all idle time, 0–1."""


@dataclass(frozen=True)
class GapReport:
    """Idle time of the decode steps. ``step_idle_ns[i] + busy == wall`` of step i + 1, exactly."""

    step_idle_ns: tuple[int, ...]
    total_ns: int
    ms_per_step: float
    """Mean over the traced decode steps."""
    kind_ms_per_step: dict[GapKind, float]
    places: tuple[GapPlace, ...]
    """By total time; at most as many as asked for."""
    place_count: int
    """All places, also those that ``places`` leaves out."""
    longest: tuple[Gap, ...]


def idle_gaps(
    timeline: Timeline | Unavailable, top_places: int = 50, top_gaps: int = 20
) -> GapReport | Unavailable:
    """The gaps of a timeline of decode steps."""
    if isinstance(timeline, Unavailable):
        return timeline
    bounds, steps = timeline.bounds_ns, timeline.count
    start, end, step, after, before = between_pieces(timeline)
    length = end - start
    kind = (start == bounds[step - 1]) + 2 * (end == bounds[step]).astype(np.int64)
    idle = sums(step - 1, length, timeline.steps)
    total = int(idle.sum())
    texts = [short_name(name) for name in timeline.names]
    places, count = _places(kind, after, before, length, texts, steps, top_places)
    by_kind = sums(kind, length, len(_KINDS)).tolist()
    longest = np.argsort(-length, kind="stable")[:top_gaps].tolist()
    return GapReport(
        step_idle_ns=tuple(idle.tolist()),
        total_ns=total,
        ms_per_step=total / steps / 1e6,
        kind_ms_per_step={k: ns / steps / 1e6 for k, ns in zip(_KINDS, by_kind, strict=True)},
        places=places,
        place_count=count,
        longest=tuple(
            Gap(
                start_ns=int(start[n]),
                end_ns=int(end[n]),
                step=int(step[n]),
                kind=_KINDS[int(kind[n])],
                after=_text(texts, int(after[n])),
                before=_text(texts, int(before[n])),
            )
            for n in longest
        ),
    )


def between_pieces(timeline: Timeline) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """(start, end, step, label before, label behind) of every gap; -1 is the step's border."""
    bounds = timeline.bounds_ns
    none = np.array([-1], np.int64)
    start = np.concatenate([bounds[:1], timeline.end_ns])
    end = np.concatenate([timeline.start_ns, bounds[-1:]])
    after = np.concatenate([none, timeline.label])
    before = np.concatenate([timeline.label, none])
    there = end > start
    origin, start, end, step = cut(start[there], end[there], bounds)
    if timeline.counted is not None:
        mine = timeline.counted[step - 1]
        origin, start, end, step = origin[mine], start[mine], end[mine], step[mine]
    after = np.where(start == bounds[step - 1], -1, after[there][origin])
    before = np.where(end == bounds[step], -1, before[there][origin])
    return start, end, step, after, before


def _places(
    kind: Ints, after: Ints, before: Ints, length: Ints, texts: list[str], steps: int, top: int
) -> tuple[tuple[GapPlace, ...], int]:
    span = len(texts) + 1
    key = (kind * span + after + 1) * span + before + 1
    _, first, place, count = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    total = sums(place, length, len(first))
    longest = np.zeros(len(first), np.int64)
    np.maximum.at(longest, place, length)
    everything = max(1, int(total.sum()))
    ranked = np.argsort(-total, kind="stable")[:top].tolist()
    return tuple(
        GapPlace(
            kind=_KINDS[int(kind[first[n]])],
            after=_text(texts, int(after[first[n]])),
            before=_text(texts, int(before[first[n]])),
            count=int(count[n]),
            total_ns=int(total[n]),
            longest_ns=int(longest[n]),
            ms_per_step=int(total[n]) / steps / 1e6,
            share=int(total[n]) / everything,
        )
        for n in ranked
    ), len(first)


def _text(texts: list[str], label: int) -> str:
    return texts[label] if label >= 0 else ""
