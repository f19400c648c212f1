"""Why the device waits: the idle time of the decode steps by cause, adding up to it exactly.

The rules, for each gap (a stretch without kernel, copy or set), the first that applies:

1. Both sides belong to one launch of a CUDA graph, or the work behind it was launched before the
   gap began: ``device``. The host was ahead, it is the device's own way from kernel to kernel.
2. The trace has API calls (``--trace full``): the gap is cut at the calls of the launching thread.
   Inside a call, the call's kind: ``sync``, ``allocator``, ``graph update``, else ``launch``; from
   the call that launched the next work to its begin, ``launch``. Between two calls no further apart
   than ``LAUNCH_PACE_NS``, ``launch``: the host was issuing all along. Between calls further apart,
   what the samples taken there say, and ``host`` where there is none.
3. No API calls: samples of the host's stack. Gaps of one sort (where in the step, short or long)
   share the samples that fell into them, in proportion to the overlap of the sample's moment of
   uncertainty with the gap. A sample of kind ``host`` counts as ``launch`` where work began within
   ``LAUNCH_PACE_NS`` before and behind it.
4. Fewer than one sample in a sort of gaps: ``unknown``.
5. Gaps are those of the engine's primary device. While another process works on it, it is not idle
   at all: ``other process``. While another of the engine's devices works, time that the rules above
   call waiting (``PEER_WAITS``) is ``other GPU``.

A sample while another Python thread was busy counts for ``gil`` by that thread's part of the
processor time of both.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.gaps import between_pieces
from llmprof.analysis.device.kernels import TracedRound, others_ns
from llmprof.analysis.device.sweep import Timeline, covered_ns
from llmprof.analysis.host.frames import label
from llmprof.analysis.host.launches import (
    LAUNCH_PACE_NS,
    Cause,
    Launches,
    share_out,
)
from llmprof.analysis.host.peers import moved
from llmprof.analysis.host.replays import ReplayWaits, replay_waits, replays
from llmprof.analysis.host.stacks import FrameTime, HostTrace, StepSample, frame_times
from llmprof.records import HostFrame, RoundRecord, Unavailable
from llmprof.runfile.trace.rows import Ints, TraceRows

SHORT_NS = 100_000
"""Gaps up to here are pooled apart from longer ones."""
READ_NS = 200_000
"""A sample was taken within this before its time, mostly (measured; docs/host-stacks.md)."""
LEAST_WEIGHT = 1.0
PEER_WAITS: tuple[Cause, ...] = ("sync", "wait", "host", "device", "unknown")
"""Not ``launch`` and the like: there the host is at work, and late, whatever the other GPU does."""

WORDS: Mapping[Cause, str] = {
    "launch": "the GPU waited for the next launch",
    "sync": "the host waited for the device or a copy before it launched more work",
    "graph update": "the host was updating CUDA graphs",
    "allocator": "memory was being allocated or freed",
    "wait": "the host slept, or waited for a lock or a file",
    "gil": "another Python thread held the GIL",
    "host": "the host computed (sampling, detokenising, Python)",
    "device": "the time between two kernels whose work was already queued",
    "other process": "another process (or another thread's loop) used the GPU meanwhile",
    "other GPU": "this GPU waited for another GPU of the engine",
    "unknown": "no API call and no stack sample covers it",
}

LATE_REPLAY = "the GPU waited for the CUDA graph's launch and the launches around it"


@dataclass(frozen=True)
class CauseTime:
    cause: Cause
    total_ns: int
    ms_per_step: float
    """Mean over the traced decode steps."""
    share: float
    """Of the idle time, 0–1."""


@dataclass(frozen=True)
class GapCauses:
    """``sum(c.total_ns for c in causes) == total_ns``, the idle time of the decode steps."""

    total_ns: int
    ms_per_step: float
    causes: tuple[CauseTime, ...]
    """By time; only those that took some."""
    samples: int
    """Samples of the host that touched a gap."""
    basis: str
    """What the causes rest on, in words."""
    frames: tuple[FrameTime, ...]
    """What the host's stack was in the gaps."""
    stacks: tuple[tuple[tuple[HostFrame, ...], float], ...]
    """(stack, part of the sample that lay in gaps)."""
    verdict: str
    replay: ReplayWaits | None = None
    """Of steps that replay a CUDA graph, where API calls were traced."""


def gap_causes(
    traced: TracedRound, rows: TraceRows, record: RoundRecord, host: HostTrace | Unavailable
) -> GapCauses | Unavailable:
    """The idle time of a traced round's decode steps, by cause."""
    found = judge(traced, rows, record, host)
    return found if isinstance(found, Unavailable) else found.report


def judge(
    traced: TracedRound, rows: TraceRows, record: RoundRecord, host: HostTrace | Unavailable
) -> GapJudge | Unavailable:
    """What tells the cause of every gap of a traced round's decode steps."""
    timeline = traced.timeline
    if isinstance(timeline, Unavailable):
        return timeline
    return GapJudge(traced, timeline, rows, record, host)


class GapJudge:
    """Knows the gaps of one traced round, what was launched when, and what the host did."""

    def __init__(
        self,
        traced: TracedRound,
        timeline: Timeline,
        rows: TraceRows,
        record: RoundRecord,
        host: HostTrace | Unavailable,
    ) -> None:
        start, end, step, _, _ = between_pieces(timeline)
        self._gaps = _Gaps(start, end, step, timeline.bounds_ns)
        self._traced, self._timeline = traced, timeline
        self._host = host
        self._steps = timeline.count
        samples = [] if isinstance(host, Unavailable) else list(host.samples)
        tick = READ_NS if isinstance(host, Unavailable) else min(READ_NS, host.sampled.tick_ns)
        begins = np.sort(traced.work.start_ns)
        overlaps = [_overlap(self._gaps, s, tick) for s in samples]
        self._touched = [
            (s, w) for s, o in zip(samples, overlaps, strict=True) if (w := sum(o.values())) > 0
        ]
        self._inside = _by_gap(overlaps, [_kinds(s, begins) for s in samples])
        self._launches = Launches(traced, rows, record)
        peers = [(d.start_ns, d.end_ns) for d in traced.devices if d is not timeline]
        self._peer = covered_ns(peers, start, end)
        """Of every gap: ns in which another device of the engine worked."""
        self._at_most = traced.quality.at_most
        self._taken = others_ns(traced, timeline)
        """Of every gap: ns in which another process worked on this device."""

    @cached_property
    def _queued(self) -> NDArray[np.bool_]:
        """Of every gap: is it the device's own (rule 1)?"""
        gaps = self._gaps
        inside: NDArray[np.bool_] = gaps.end != gaps.bounds[gaps.step]
        found: NDArray[np.bool_] = self._launches.queued(gaps.start, gaps.end) & inside
        return found

    def _cut(self, n: int) -> Iterator[tuple[Cause, int]]:
        """Rule 2."""
        start, end = int(self._gaps.start[n]), int(self._gaps.end[n])
        return self._launches.split(start, end, self._inside.get(n, {}))

    def of(self, start_ns: int, end_ns: int) -> dict[Cause, int]:
        """The ns of one gap by cause, largest first; empty for what is no gap of a decode step.

        By samples (rule 3) a gap has the parts of all gaps of its sort.
        """
        n = int(np.searchsorted(self._gaps.start, start_ns))
        there = n < len(self._gaps.start) and self._gaps.start[n] == start_ns
        if not there or self._gaps.end[n] != end_ns:
            return {}
        found: defaultdict[Cause, int] = defaultdict(int)
        if self._queued[n]:
            found["device"] = end_ns - start_ns
        elif self.has_calls:
            for cause, ns in self._cut(n):
                found[cause] += ns
        else:
            found.update(_by_sort(end_ns - start_ns, self._weights[self._gaps.sort(n)]))
        _not_idle(found, int(self._taken[n]), int(self._peer[n]))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def samples_like(self, start_ns: int) -> float:
        """Samples that lie in the gap at ``start_ns`` and in others of its sort; parts add up."""
        n = int(np.searchsorted(self._gaps.start, start_ns))
        there = n < len(self._gaps.start) and self._gaps.start[n] == start_ns
        return sum(self._weights[self._gaps.sort(n)].values()) if there else 0.0

    @cached_property
    def _weights(self) -> defaultdict[tuple[int, bool], dict[Cause, float]]:
        """Sort of gaps → what the samples in them count for."""
        weights: defaultdict[tuple[int, bool], dict[Cause, float]] = defaultdict(dict)
        for n, found in self._inside.items():
            if not self._queued[n]:
                mine = weights[self._gaps.sort(n)]
                for cause, weight in found.items():
                    mine[cause] = mine.get(cause, 0.0) + weight
        return weights

    @property
    def has_calls(self) -> bool:
        """Were API calls traced? If not, causes come from samples."""
        return self._launches.calls is not None

    @property
    def _call(self) -> HostFrame | None:
        return None if isinstance(self._host, Unavailable) else self._host.one_call

    @property
    def basis(self) -> str:
        """What the causes rest on, in words."""
        if self.has_calls and isinstance(self._host, Unavailable):
            return "API calls alone: no host stacks"
        if self.has_calls:
            return "API calls; stacks between calls that are far apart"
        if self._touched:
            return "sampled host stacks (--trace full adds the exact API calls)"
        host = self._host
        why = host.reason if isinstance(host, Unavailable) else "no sample fell into a gap"
        return f"neither API calls nor host stacks: {why}"

    @cached_property
    def report(self) -> GapCauses:
        gaps, totals = self._gaps, defaultdict[Cause, int](int)
        length = gaps.end - gaps.start
        late = np.zeros(len(length), np.int64)
        total = int(length.sum())
        totals["device"] = int(length[self._queued].sum())
        queued = self._queued
        _not_idle(totals, int(self._taken[queued].sum()), int(self._peer[queued].sum()))
        if self.has_calls:
            for n in np.flatnonzero(~self._queued).tolist():
                found = defaultdict[Cause, int](int)
                for cause, ns in self._cut(n):
                    found[cause] += ns
                _not_idle(found, int(self._taken[n]), int(self._peer[n]))
                late[n] = found["launch"]
                for cause, ns in found.items():
                    totals[cause] += ns
        else:
            place, short = gaps.sorts
            for sort in itertools.product(range(4), (False, True)):
                mine = ~self._queued & (place == sort[0]) & (short == sort[1])
                if ns := int(length[mine].sum()):
                    found = defaultdict(int, _by_sort(ns, self._weights[sort]))
                    _not_idle(found, int(self._taken[mine].sum()), int(self._peer[mine].sum()))
                    for cause, part in found.items():
                        totals[cause] += part
        stacks = tuple((s.stack, w) for s, w in self._touched)
        causes = _causes(totals, total, self._steps)
        ms = total / self._steps / 1e6
        return GapCauses(
            total_ns=total,
            ms_per_step=ms,
            causes=causes,
            samples=len(self._touched),
            basis=self.basis,
            frames=frame_times(stacks, ms),
            stacks=stacks,
            verdict=self._bounded(
                _verdict(
                    causes,
                    ms,
                    None if self.has_calls else sum(w for _, w in self._touched),
                    self._call,
                    replays(self._traced),
                )
            ),
            replay=replay_waits(
                self._traced,
                self._timeline,
                self._launches,
                (gaps.start, gaps.end, gaps.step),
                late,
            ),
        )

    def _bounded(self, verdict: str) -> str:
        """Of a trace with lost records: some of what seems idle was work."""
        return f"at most {verdict} (records were lost)" if self._at_most else verdict


def _not_idle(found: defaultdict[Cause, int], taken_ns: int, peer_ns: int) -> None:
    """Rule 5: ``taken_ns`` of the gaps another process had the device, ``peer_ns`` another device
    of the engine worked."""
    moves: tuple[tuple[Cause, int, Sequence[Cause]], ...] = (
        ("other process", taken_ns, tuple(found)),
        ("other GPU", peer_ns, PEER_WAITS),
    )
    for cause, ns, waits in moves:
        if ns:
            whole = sum(found.values())
            rest = moved(found, waits, ns)
            found.update({name: rest.get(name, 0) for name in found})
            found[cause] += whole - sum(rest.values())


def _causes(totals: Mapping[Cause, int], total: int, steps: int) -> tuple[CauseTime, ...]:
    return tuple(
        CauseTime(cause, ns, ns / steps / 1e6, ns / max(1, total))
        for cause, ns in sorted(totals.items(), key=lambda item: -item[1])
        if ns
    )


def _verdict(
    causes: Sequence[CauseTime],
    ms: float,
    samples: float | None = None,
    call: HostFrame | None = None,
    replay: bool = False,
) -> str:
    """In words.

    Args:
        samples: that the causes rest on; ``None`` where API calls say them exactly.
        call: the native call that the samples cannot look into.
        replay: the steps replay a CUDA graph: a launch or a few, and still late.
    """
    if not causes:
        return "the device never waited"
    shown = [c for c in causes if c.share >= 0.05] or list(causes[:1])
    parts = [f"{c.ms_per_step:.3f} ms {c.cause}" for c in shown]
    if rest := sum(c.ms_per_step for c in causes if c not in shown):
        parts.append(f"{rest:.3f} ms other causes")
    first = causes[0]
    name: str = "launch-bound" if first.cause == "launch" else first.cause
    words = WORDS[first.cause]
    if first.cause == "launch" and replay:
        name, words = "late replay", LATE_REPLAY
    if first.cause == "unknown" and call is not None:
        name = "not resolved"
        words = f"the host was inside {label(call)} (--trace full adds its calls)"
    # A count of n samples tells a share to within two standard errors: 60 % of 16 may be 40 %.
    error = 0.0
    if samples is not None and first.cause not in ("device", "other process", "other GPU"):
        error = 2 * math.sqrt(first.share * (1 - first.share) / max(1.0, samples))
    # 38 % launch beside 33 % device is no verdict on the engine: say that it is a part.
    if first.share - error > 0.5:
        degree = "mostly"
    elif first.share > 0.5:
        few = f"{first.share:.0%} ± {error:.0%}" if error < 0.3 else "too few samples to be sure"
        degree = f"the largest part ({few}) is"
    else:
        degree = f"the largest part ({first.share:.0%}) is"
    return f"{ms:.3f} ms idle a step = {' + '.join(parts)}; {degree} {name}: {words}"


@dataclass(frozen=True, eq=False)
class _Gaps:
    start: Ints
    end: Ints
    step: Ints
    bounds: Ints

    @cached_property
    def sorts(self) -> tuple[Ints, NDArray[np.bool_]]:
        """Where in the step, and whether short: gaps of one sort share their samples."""
        first = self.start == self.bounds[self.step - 1]
        last = self.end == self.bounds[self.step]
        place: Ints = first.astype(np.int64) + 2 * last.astype(np.int64)
        return place, self.end - self.start <= SHORT_NS

    def sort(self, n: int) -> tuple[int, bool]:
        """Of one gap."""
        place, short = self.sorts
        return int(place[n]), bool(short[n])


def _overlap(gaps: _Gaps, sample: StepSample, width: int) -> dict[int, float]:
    """Gap → the part of the sample's uncertain moment that lies in it."""
    begin, finish = sample.time_ns - width, sample.time_ns
    first = int(np.searchsorted(gaps.end, begin, "right"))
    last = int(np.searchsorted(gaps.start, finish, "left"))
    found = {}
    for n in range(first, last):
        part = min(finish, int(gaps.end[n])) - max(begin, int(gaps.start[n]))
        if part > 0:
            found[n] = part / width
    return found


def _kinds(sample: StepSample, begins: Ints) -> dict[Cause, float]:
    """What the sample counts for; weights add up to 1."""
    kind: Cause = "unknown" if sample.kind == "native" else sample.kind
    if kind == "host" and len(begins):
        at = int(np.searchsorted(begins, sample.time_ns))
        before = sample.time_ns - int(begins[at - 1]) if at else LAUNCH_PACE_NS + 1
        behind = int(begins[at]) - sample.time_ns if at < len(begins) else LAUNCH_PACE_NS + 1
        if max(before, behind) <= LAUNCH_PACE_NS:
            kind = "launch"
    if not sample.gil:
        return {kind: 1.0}
    return {kind: 1 - sample.gil, "gil": sample.gil}


def _by_gap(
    overlaps: Sequence[Mapping[int, float]], kinds: Sequence[Mapping[Cause, float]]
) -> dict[int, dict[Cause, float]]:
    found: defaultdict[int, defaultdict[Cause, float]] = defaultdict(lambda: defaultdict(float))
    for parts, kind in zip(overlaps, kinds, strict=True):
        for n, part in parts.items():
            for cause, weight in kind.items():
                found[n][cause] += part * weight
    return {n: dict(weights) for n, weights in found.items()}


def _by_sort(ns: int, weights: Mapping[Cause, float]) -> dict[Cause, int]:
    """Rule 3 and 4."""
    if sum(weights.values()) < LEAST_WEIGHT:
        return {"unknown": ns}
    return share_out(ns, weights)
