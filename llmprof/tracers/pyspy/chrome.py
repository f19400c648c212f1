"""py-spy's chrometrace file to dated samples of the worker's threads.

What the file holds (py-spy 0.4, ``src/chrometrace.rs``): an ``E`` event for every frame that is on
a thread's stack no more and a ``B`` event for every new one, with the time of writing in us since
an unknown moment. A sample that shows the stack of the one before it leaves no trace at all. The
metronome (``worker.metronome``) mends both: its function changes with every tick, so nearly every
sample leaves an event there, and the function's name says when it was taken.

Which samples are kept depends on the metronome alone, never on the worker's stack, so the kept
ones are an unbiased choice of all: py-spy draws its intervals from an exponential distribution.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from llmprof.tracers.pyspy.metronome import BEATS, FILE_NAME, PREFIX

SAME_SAMPLE_US = 100
"""py-spy writes the threads of one sample one after the other, within this."""
LONGEST_STOP_US = 50_000
"""The most that a sample may take where py-spy stops both processes while it reads them, each in
turn: the worker cannot go on meanwhile, so its stack is still that of the tick. Unwinding torch's
native frames takes 5–30 ms, those of the metronome a few."""
LONGEST_TICK = 4
"""A tick this many times the median says too little about when: the metronome had no processor."""
ANCHORS = 8
"""Beats tried, at the most, to find out from when py-spy counts."""
_THREAD = re.compile(r"^thread \((0x)?([0-9a-fA-F]+)\)(?:: (.*))?$", re.DOTALL)

Frame = tuple[str, str, int]
"""Function, file, line (0: unknown)."""
Stack = tuple[Frame, ...]
"""Innermost frame first."""


@dataclass(frozen=True)
class HostSample:
    """All Python threads of the worker at one moment."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    stacks: tuple[tuple[int, Stack], ...]
    """(OS thread id, stack) of each thread."""


@dataclass
class HostSamples:
    """What one recording brought."""

    samples: list[HostSample] = field(default_factory=list)
    """Oldest first."""
    errors: int = 0
    """Times that py-spy could not read a stack (without stopping the worker that happens)."""
    undated: int = 0
    """Left out: they took too long, or the metronome's tick did, to be dated."""
    error_ns: int = 0
    """Each sample was taken within this much of its time (the longest tick that was accepted)."""
    tick_ns: int = 0
    """Median tick, as it came out."""
    thread_names: dict[int, str] = field(default_factory=dict)


def decode(
    path: Path, pid: int, metronome_pid: int, ticks: Sequence[int], stopped: bool = False
) -> HostSamples:
    """The samples of process ``pid``.

    Args:
        ticks: begin of every tick of the metronome, CLOCK_MONOTONIC ns.
        stopped: py-spy stopped each process while it read it.

    Raises:
        ValueError: not such a file, or nothing in it can be dated.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        rows = [_event(e) for e in events if e["pid"] in (pid, metronome_pid)]
    except (KeyError, TypeError, ValueError, RecursionError) as why:
        raise ValueError(f"py-spy left no readable chrometrace: {type(why).__name__}") from None
    beats = [
        (at, row.ts, int(row.name[len(PREFIX) :]))
        for at, row in enumerate(rows)
        if row.pid == metronome_pid and row.begins and row.file == FILE_NAME and _is_beat(row.name)
    ]
    if len(beats) < 2 or len(ticks) < 3:
        raise ValueError("py-spy did not see the process that dates its samples")
    numbers, start_ns = _place(beats, ticks)
    found = HostSamples()
    lengths = [b - a for a, b in pairwise(ticks)]
    found.tick_ns = int(median(lengths))
    replay = _Replay(rows, pid, found.thread_names)
    longest_ns = LONGEST_STOP_US * 1000 if stopped else LONGEST_TICK * found.tick_ns
    slack_ns = (LONGEST_STOP_US if stopped else SAME_SAMPLE_US) * 1000
    for (at, ts, _), tick in zip(beats, numbers, strict=True):
        stacks = replay.up_to(at, ts, metronome_pid)
        if tick is None or tick >= len(lengths) or lengths[tick] > longest_ns:
            found.undated += 1
            continue
        begin, end = ticks[tick], ticks[tick + 1]
        written = start_ns + ts * 1000
        if written > end + slack_ns:
            # Drawn out: the worker may have been read long after the metronome was.
            found.undated += 1
        elif stacks:
            # The metronome was stopped within its nap, whatever the tick took with the stop in it.
            latest = min(end, begin + found.tick_ns) if stopped else end
            when = min(max(written, begin), latest)
            found.error_ns = max(
                found.error_ns, max(written, end) - begin if stopped else end - begin
            )
            found.samples.append(HostSample(when, stacks))
    found.samples.sort(key=lambda sample: sample.time_ns)
    found.error_ns += SAME_SAMPLE_US * 1000
    return found


@dataclass(frozen=True)
class _Event:
    pid: int
    thread: int
    begins: bool
    ts: int
    name: str
    file: str
    line: int


def _event(e: dict[str, Any]) -> _Event:
    line = e["args"]["line"]
    return _Event(
        int(e["pid"]),
        int(e["tid"]),
        e["ph"] == "B",
        int(e["ts"]),
        str(e["name"]),
        str(e["args"]["filename"]),
        int(line) if line is not None else 0,
    )


def _is_beat(name: str) -> bool:
    return name.startswith(PREFIX) and name[len(PREFIX) :].isdecimal()


def _place(
    beats: Sequence[tuple[int, int, int]], ticks: Sequence[int]
) -> tuple[list[int | None], int]:
    """The tick of every beat seen, and the moment from which py-spy counts.

    The first beat may be of any tick with its number; where its own sample took too long, as the
    first one of a large process can, another beat is tried in its place. The right tick is that
    with which the stamps lie closest behind the begins of their ticks: ticks are of unequal length,
    so a whole turn of the functions more or less does not fit. A stamp is written after its sample
    was taken, and that was after its tick began: so py-spy's zero is not before ``ticks[n] - ts``
    for any beat, and the largest of these is next to it. A twentieth of them is passed over: a beat
    that was written a turn late looks like one of a later tick. It is left out below.
    """
    some = beats[:: max(1, len(beats) // 200)]
    best: tuple[int, int] | None = None
    for _, anchor_ts, anchor in beats[:: max(1, len(beats) // ANCHORS)]:
        for candidate in range(anchor, len(ticks), BEATS):
            rough = ticks[candidate] - anchor_ts * 1000
            numbers = [_nearest(ticks, rough + ts * 1000, number) for _, ts, number in some]
            apart = [
                rough + ts * 1000 - ticks[n]
                for (_, ts, _), n in zip(some, numbers, strict=True)
                if n is not None
            ]
            if len(apart) * 2 > len(some):
                middle = int(median(apart))
                spread = int(median(abs(x - middle) for x in apart))
                best = min(best or (spread, rough), (spread, rough))
        if best is not None:
            break
    if best is None:
        raise ValueError("the times of py-spy's samples do not fit those of the metronome")
    found = [_nearest(ticks, best[1] + ts * 1000, number) for _, ts, number in beats]
    begins = sorted(
        ticks[n] - ts * 1000 for (_, ts, _), n in zip(beats, found, strict=True) if n is not None
    )
    start_ns = begins[-1 - len(begins) // 20]
    latest_ns = [start_ns + (ts + SAME_SAMPLE_US) * 1000 for _, ts, _ in beats]
    placed = [
        n if n is not None and ticks[n] <= late else None
        for n, late in zip(found, latest_ns, strict=True)
    ]
    return placed, start_ns


def _nearest(ticks: Sequence[int], when_ns: int, number: int) -> int | None:
    """The tick with that number (modulo BEATS) next to ``when_ns``; ``None``: too far away."""
    at = max(0, bisect_right(ticks, when_ns) - 1)
    offset = (number - at + BEATS // 2) % BEATS - BEATS // 2
    tick = at + offset
    return tick if 0 <= tick < len(ticks) and abs(offset) <= BEATS // 4 else None


class _Replay:
    """Keeps the stacks of the worker's threads while events are read in order."""

    def __init__(self, rows: Sequence[_Event], pid: int, names: dict[int, str]) -> None:
        self._rows = rows
        self._pid = pid
        self._names = names
        self._at = 0
        self._stacks: defaultdict[int, list[_Event]] = defaultdict(list)

    def up_to(self, index: int, ts: int, metronome_pid: int) -> tuple[tuple[int, Stack], ...]:
        """The stacks in the sample whose metronome event is row ``index``.

        The worker's events of the same sample stand before it or right behind it.
        """
        while self._at < len(self._rows):
            row = self._rows[self._at]
            late = row.pid == metronome_pid and row.begins and _is_beat(row.name)
            if self._at > index and (late or row.ts > ts + SAME_SAMPLE_US):
                break
            self._take(row)
            self._at += 1
        return tuple(self._threads())

    def _take(self, row: _Event) -> None:
        if row.pid != self._pid:
            return
        stack = self._stacks[row.thread]
        if row.begins:
            stack.append(row)
        elif stack:
            stack.pop()

    def _threads(self) -> Iterator[tuple[int, Stack]]:
        for thread, stack in self._stacks.items():
            number, frames = thread & 0xFFFFFF, []
            for row in stack:
                match = _THREAD.match(row.name) if not row.file else None
                if match is not None:
                    number = int(match[2], 16 if match[1] else 10) & 0xFFFFFF
                    self._names[number] = match[3] or ""
                elif row.file or not row.name.startswith("process "):
                    frames.append((row.name, row.file, row.line))
            if frames:
                yield number, tuple(reversed(frames))
