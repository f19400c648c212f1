"""Engines as lanes on one axis: by step index, each step of every engine begins at the same place,
or by time, as the run went.

A position on an axis is ns. Between positions and a lane's own time stands a map that never goes
back; so everything that is known by time can be drawn on either axis without being moved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.ranks.matched.joins import Joins
from llmprof.analysis.timeline.host import HostLane
from llmprof.analysis.timeline.lod import Curve, LaneWork
from llmprof.records import PassName, RoundRecord, Unavailable
from llmprof.records.steps import BETWEEN, counted
from llmprof.runfile.trace.overview import Cells
from llmprof.runfile.trace.rows import ApiRows, Ints

Floats = NDArray[np.float64]
Align = Literal["step", "time"]
RoundKey = tuple[PassName, int]
"""Pass and index within the pass: rounds of the same key stand in the same place."""


@dataclass(frozen=True, eq=False)
class Track:
    """One round of one engine: prefill as step 0, then the decode steps."""

    key: RoundKey
    bounds_ns: Ints
    """Step ``i`` is ``bounds_ns[i]`` to ``bounds_ns[i + 1]``; steps + 2 values."""
    median_ns: float
    """Of the decode steps that count; NaN without any."""
    kinds: tuple[str, ...] = ()
    """Of every decode step (``step_kinds.StepKind``), where they are known and worth a word."""
    loads: tuple[str, ...] = ()
    """Of every decode step its batch and KV length, in words; empty where no step says it."""
    whole: bool = False
    """Nobody knows its steps: the whole recording stands as one."""

    @property
    def steps(self) -> int:
        return len(self.bounds_ns) - 2

    @property
    def wall_ns(self) -> Ints:
        """Of prefill and every decode step."""
        return np.diff(self.bounds_ns)

    def slowest_first(self) -> list[int]:
        """Decode steps by latency, without what only lies between two."""
        order = np.argsort(-self.wall_ns[1:], kind="stable") + 1
        return [int(i) for i in order[self._is_step[order - 1]]]

    def rank(self, step: int) -> tuple[int, int] | None:
        """Place of a decode step among the slowest, from 1, and of how many; ``None``: it only lies
        between two."""
        if not self._is_step[step - 1]:
            return None
        wall = self.wall_ns[1:]
        slower = np.count_nonzero(self._is_step & (wall > wall[step - 1]))
        return int(slower) + 1, int(np.count_nonzero(self._is_step))

    @cached_property
    def _is_step(self) -> NDArray[np.bool_]:
        """One a decode step: does it not only lie between two?"""
        found = np.array([kind not in BETWEEN for kind in self.kinds], bool)
        return found if len(found) == self.steps and found.any() else np.ones(self.steps, bool)

    def median_step(self, first: int | None = None) -> int:
        """The decode step, of the ``first`` ones, whose latency is nearest to the median."""
        wall = self.wall_ns[1:] if first is None else self.wall_ns[1 : first + 1]
        return int(np.argmin(np.abs(wall - self.median_ns))) + 1

    def step_at(self, time_ns: int) -> int:
        at = int(np.searchsorted(self.bounds_ns, time_ns, "right")) - 1
        return min(max(at, 0), self.steps)


def track_of(
    record: RoundRecord, bounds_ns: Ints | None = None, kinds: tuple[str, ...] = ()
) -> Track | None:
    """``None`` for a round that ended before its first token.

    Args:
        bounds_ns: borders of the decode steps where they are not the host's stamps
            (``Attribution.bounds_ns``).
    """
    stamps = np.array(record.stamps_ns, np.int64) if bounds_ns is None else bounds_ns
    if len(stamps) < 2:
        return None
    bounds = np.maximum.accumulate(np.concatenate([[record.prefill_start_ns], stamps]))
    wall = np.diff(bounds)[1:]
    counts = np.array(counted(record.labels, record.steps), bool)
    if len(counts) == len(wall) and counts.any():
        wall = wall[counts]
    loads = tuple(label.composition.words if label.composition else "" for label in record.labels)
    if not any(loads) or len(loads) != record.steps:
        loads = ()
    return Track((record.pass_name, record.index), bounds, float(np.median(wall)), kinds, loads)


def whole_track(record: RoundRecord, start_ns: int, end_ns: int) -> Track:
    """Of a recording whose steps are not known: all of it from ``start_ns`` to ``end_ns``."""
    bounds = np.array([start_ns, start_ns, max(end_ns, start_ns + 1)], np.int64)
    return Track((record.pass_name, record.index), bounds, float(bounds[2] - start_ns), whole=True)


@dataclass(frozen=True, eq=False)
class Series:
    """A quantity over disjoint stretches of time."""

    name: str
    unit: str
    span: Curve
    value: Floats
    integral: Floats
    """Of value × ns before stretch ``i``; one more than there are stretches."""
    note: str = ""

    @classmethod
    def of(
        cls, name: str, unit: str, start_ns: Ints, end_ns: Ints, value: Floats, note: str = ""
    ) -> Series:
        integral = np.concatenate([[0.0], np.cumsum(value * (end_ns - start_ns))])
        return cls(name, unit, Curve.of(start_ns, end_ns), value, integral, note)

    def means(self, edges_ns: Ints) -> Floats:
        """Mean between neighbouring edges; NaN where nothing is known."""
        begun = np.searchsorted(self.span.start_ns, edges_ns, "right")
        last = np.maximum(begun, 1) - 1
        over = np.where(begun > 0, np.maximum(0, self.span.end_ns[last] - edges_ns), 0)
        total = np.diff(self.integral[begun] - over * self.value[last])
        covered = self.span.between(edges_ns)
        means: Floats = np.full(len(total), np.nan)
        np.divide(total, covered, out=means, where=covered > 0)
        return means

    def at(self, time_ns: int) -> float | None:
        index = int(np.searchsorted(self.span.start_ns, time_ns, "right")) - 1
        known = index >= 0 and time_ns < self.span.end_ns[index]
        return float(self.value[index]) if known else None


@dataclass(frozen=True, eq=False)
class Joined:
    """What joins a lane to the other ranks of its group: their collectives."""

    names: dict[int, str]
    """Device of the lane's engine → ``rank 1 · GPU 1``."""
    waits: dict[int, Curve]
    """Rank → when others waited in a collective that this one came to last."""
    transfer: Curve
    """When all ranks were in the collective."""

    @classmethod
    def of(cls, joins: Joins) -> Joined:
        waits = {rank: Curve.of(*spans) for rank, spans in joins.waits.items()}
        return cls(joins.names, waits, Curve.of(*joins.transfer))


@dataclass(frozen=True, eq=False)
class Lane:
    """One engine."""

    label: str
    tracks: tuple[Track, ...]
    """In order of time."""
    work: LaneWork | Unavailable
    """Of the traced round, on the engine's primary device."""
    api: ApiRows
    api_busy: Curve
    """Time inside calls, nested ones once."""
    traced_key: RoundKey | None = None
    series: tuple[Series, ...] = ()
    """Sampled along the time of the run."""
    step_series: tuple[tuple[str, str, tuple[float | None, ...], str], ...] = ()
    """Known a decode step, from another round: (name, unit, values from step 1, note)."""
    samples: dict[RoundKey, tuple[Series, ...]] = field(default_factory=dict)
    """Finer than a step, of one round."""
    host: HostLane | None = None
    """Sampled stacks of the traced round; ``None`` where there are none."""
    cells: Cells | None = None
    """Kernel time behind what ``work`` holds."""
    others: tuple[LaneWork, ...] = ()
    """Of the same round on the engine's other devices."""
    joined: Joined | None = None
    """``None``: it shares no collective with another rank."""
    detected: bool = False
    """Its steps were found in the device's own work: nobody marked them."""

    def analysed_steps(self, track: Track) -> int:
        """The first so many decode steps have all their kernels in ``work``."""
        if self.cells is None:
            return track.steps
        return int(np.searchsorted(track.bounds_ns, self.cells.start_ns, "right")) - 2

    def spent(self, edges_ns: Ints) -> dict[str, Ints]:
        """Category → ns of it between neighbouring edges: of single kernels where they are
        analysed, else of cells."""
        found: dict[str, Ints] = {}
        if not isinstance(self.work, Unavailable):
            found = {name: curve.between(edges_ns) for name, curve in self.work.curves.items()}
        if self.cells is not None:
            for name, ns in self.cells.between(edges_ns).items():
                found[name] = found[name] + ns if name in found else ns
        return found

    def inside(self, edges_ns: Ints) -> Ints:
        """ns between neighbouring edges that lie in the traced round, as far as it is known."""
        track = self.traced
        if track is None:
            return np.zeros(len(edges_ns) - 1, np.int64)
        begin, end = int(track.bounds_ns[0]), int(track.bounds_ns[-1])
        if self.cells is not None:
            end = max(begin, min(end, self.cells.known_ns))
        inside: Ints = np.clip(edges_ns, begin, end)
        return np.diff(inside)

    def track(self, key: RoundKey) -> Track | None:
        return next((t for t in self.tracks if t.key == key), None)

    @property
    def traced(self) -> Track | None:
        """The round that ``work`` is of."""
        return None if self.traced_key is None else self.track(self.traced_key)


class Axis(ABC):
    """What the two axes have in common.

    ``length_ns`` is the end of the axis, ``home`` the part of it that is shown first.
    """

    length_ns: int
    home: tuple[int, int]
    align: Align

    @abstractmethod
    def tracks(self, lane: int) -> tuple[Track, ...]:
        """The rounds of a lane that are on the axis."""

    @abstractmethod
    def times(self, lane: int, positions: Ints) -> Ints:
        """A lane's time at positions; ascending for ascending positions."""

    @abstractmethod
    def positions(self, lane: int, times_ns: Ints) -> Ints:
        """Where a lane's times lie."""

    def place(self, lane: int, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Positions of a stretch within one step."""
        start, last = self.positions(lane, np.array([start_ns, max(start_ns, end_ns - 1)]))
        return int(start), int(last) + min(1, end_ns - start_ns)


class TimeAxis(Axis):
    """As the run went, all rounds, from the first one."""

    align: Align = "time"

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._tracks = tuple(lane.tracks for lane in lanes)
        bounds = [t.bounds_ns[[0, -1]] for tracks in self._tracks for t in tracks]
        self.origin_ns = min((int(b[0]) for b in bounds), default=0)
        self.length_ns = max((int(b[1]) for b in bounds), default=1) - self.origin_ns
        self.home = (0, self.length_ns)

    def tracks(self, lane: int) -> tuple[Track, ...]:
        return self._tracks[lane]

    def times(self, lane: int, positions: Ints) -> Ints:
        return positions + self.origin_ns

    def positions(self, lane: int, times_ns: Ints) -> Ints:
        return times_ns - self.origin_ns


class StepAxis(Axis):
    """One round of every lane; a step takes as long as the slowest lane needs for it."""

    align: Align = "step"

    def __init__(self, lanes: Sequence[Lane], key: RoundKey) -> None:
        self.key = key
        self._tracks = tuple(lane.track(key) for lane in lanes)
        steps = max((t.steps for t in self._tracks if t), default=0)
        longest = np.zeros(steps + 1, np.int64)
        for track in self._tracks:
            if track is not None:
                wall = track.wall_ns
                longest[: len(wall)] = np.maximum(longest[: len(wall)], wall)
        self.slots = np.concatenate([[0], np.cumsum(longest)]).astype(np.int64)
        """Step ``i`` is from ``slots[i]`` to ``slots[i + 1]``."""
        self.length_ns = max(1, int(self.slots[-1]))
        first = int(self.slots[1]) if steps else 0
        self.home = (first, max(first + 1, self.length_ns))

    @property
    def steps(self) -> int:
        return len(self.slots) - 2

    def tracks(self, lane: int) -> tuple[Track, ...]:
        track = self._tracks[lane]
        return () if track is None else (track,)

    def times(self, lane: int, positions: Ints) -> Ints:
        track = self._tracks[lane]
        if track is None:
            return np.zeros(len(positions), np.int64)
        step = np.clip(np.searchsorted(self.slots, positions, "right") - 1, 0, track.steps)
        inside = np.clip(positions - self.slots[step], 0, track.wall_ns[step])
        times: Ints = track.bounds_ns[step] + inside
        return times

    def positions(self, lane: int, times_ns: Ints) -> Ints:
        track = self._tracks[lane]
        if track is None:
            return np.zeros(len(times_ns), np.int64)
        bounds = track.bounds_ns
        step = np.clip(np.searchsorted(bounds, times_ns, "right") - 1, 0, track.steps)
        found: Ints = self.slots[step] + np.clip(times_ns - bounds[step], 0, track.wall_ns[step])
        return found


class RunLanes:
    """The lanes of one run, or of several side by side, and the axes they can stand on."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = tuple(lanes)
        keys = dict.fromkeys(t.key for lane in self.lanes for t in lane.tracks)
        order = {"traced": 1, "sampled": 2, "timing": 3}
        first = {lane.traced_key for lane in self.lanes}
        self.keys: tuple[RoundKey, ...] = tuple(
            sorted(keys, key=lambda k: (0 if k in first else order[k[0]], k[1]))
        )
        """Rounds that can be aligned by step, the traced one first."""
        self._axes: dict[RoundKey | None, Axis] = {}

    def axis(self, align: Align, key: RoundKey | None = None) -> Axis | None:
        """``None`` where no engine has a finished decode step. Where nobody knows a step there is
        time alone."""
        if not self.keys:
            return None
        if all(t.whole for lane in self.lanes for t in lane.tracks):
            align = "time"
        wanted = None if align == "time" else (key if key in self.keys else self.keys[0])
        if wanted not in self._axes:
            made = TimeAxis(self.lanes) if wanted is None else StepAxis(self.lanes, wanted)
            self._axes[wanted] = made
        return self._axes[wanted]
