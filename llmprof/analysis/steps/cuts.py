"""Where in a cycle one step ends and the next begins.

A repeating anchor says how long a cycle is, not where it starts. A step ends with the token: after
its copy to the host, outside the layers. What is cut where is a rule with a name, and the name is
part of the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmprof.analysis.steps.events import TO_HOST, Events, Flags, joined
from llmprof.runfile.trace.rows import Ints

Rule = Literal[
    "copy to device",
    "copy to host",
    "graph launch",
    "idle",
    "embedding",
    "sampling",
    "largest idle",
]
QUIET_NS = 3_000
"""Work that starts no earlier than this before all other work has ended runs alone."""
INPUTS_WITHIN = 8
"""Rows behind the token's copy in which copies to the device are the next step's inputs."""


@dataclass(frozen=True)
class Cut:
    """The cut of all cycles of one class."""

    length: int
    """Rows of such a cycle."""
    offset: int
    """From the anchor to the first row of the next step, 1 to ``length``."""
    rule: Rule
    cycles: int


def outside_layers(symbol: Ints, busy_ns: Ints) -> Ints:
    """Offsets, in order, of the part of a cycle that is not its layers.

    Layers are the run of repeated trigrams that works longest; a cycle without any is given whole.
    """
    n = len(symbol)
    ring = np.concatenate([symbol[-1:], symbol, symbol[:1]])
    _, inverse, count = np.unique(
        joined(ring[:-2], ring[1:-1], ring[2:]), return_inverse=True, return_counts=True
    )
    repeated = count[inverse] > 1
    if repeated.all() or not repeated.any():
        return np.arange(n)
    shift = int(np.flatnonzero(~repeated)[0])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.roll(repeated, -shift), [0]])))
    runs: list[tuple[int, int]] = []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if runs and begin - runs[-1][1] < 4:  # an odd kernel or two do not end the layers
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((begin, end))
    work = np.concatenate([[0], np.cumsum(np.roll(busy_ns, -shift))])
    begin, end = max(runs, key=lambda run: work[run[1]] - work[run[0]])
    if work[end] - work[begin] < 0.2 * work[-1]:
        return np.arange(n)
    zone: Ints = (np.arange(end, begin + n) + shift) % n
    return zone


def place_cut(events: Events, starts: Ints, length: int) -> tuple[int, Rule]:
    """Offset of the cut, and its rule, for cycles that are alike.

    Args:
        starts: their first rows; each is ``length`` rows long.
    """
    return _Cycle(events, starts, length).cut()


class _Cycle:
    """The middle one of some cycles that are alike, and the median idle time in all of them."""

    def __init__(self, events: Events, starts: Ints, length: int) -> None:
        self.events, self.length = events, length
        self.at = at = int(starts[len(starts) // 2])
        sample = starts[:: max(1, len(starts) // 16)]
        rows = sample[:, None] + np.arange(length)[None, :]
        idle = np.maximum(0, events.start_ns[rows] - events.before_ns[rows])
        self.idle = np.median(idle, axis=0)
        """ns without work before each row."""
        busy = (events.end_ns - events.start_ns)[at : at + length]
        zone = outside_layers(events.symbol[at : at + length], busy)
        if len(zone) == length:
            zone = np.roll(zone, -self._tail_of_whole())
        self.zone = zone
        row = at + zone
        self.to_host = events.token_copies[row]
        self.to_device = events.input_copies[row]
        self.sampling = events.sampling[row]
        self.embedding = events.embedding[row]
        self.waited_for = self._waited_for(row, busy)
        node, launch = events.node, events.launch
        before = np.maximum(row - 1, 0)
        another = (node[before] == 0) | (launch[before] != launch[row])
        self.graph_begins = (node[row] > 0) & another

    def _tail_of_whole(self) -> int:
        """Without layers to be seen (compiled graphs) the cycle is looked at from its sampling,
        or else its copy to the host, on."""
        rows = slice(self.at, self.at + self.length)
        for tags in (self.events.sampling[rows], self.events.what[rows] == TO_HOST):
            if tags.any():
                return int(np.argmax(tags))
        return 0

    def _waited_for(self, row: Ints, busy: Ints) -> Flags:
        """Copies of tokens that the main stream waits for. A copy on a side stream, under other
        work (asynchronous scheduling), ends no step."""
        events = self.events
        streams, which = np.unique(
            events.stream[self.at : self.at + self.length], return_inverse=True
        )
        main = streams[np.argmax(np.bincount(which, busy))]
        behind = np.minimum(row + 1, len(events) - 1)
        alone = events.start_ns[row] >= events.before_ns[row] - QUIET_NS
        alone &= (row + 1 >= len(events)) | (
            events.start_ns[behind] >= events.end_ns[row] - QUIET_NS // 3
        )
        waited: Flags = self.to_host & ((events.stream[row] == main) | alone)
        return waited

    def _gap(self, place: int) -> float:
        """Idle time before a place of the zone, its end included."""
        at = self.zone[place] if place < len(self.zone) else (self.zone[-1] + 1) % self.length
        return float(self.idle[at])

    def _offset(self, place: int) -> int:
        zone = self.zone
        at = int(zone[place]) if place < len(zone) else int(zone[-1] + 1) % self.length
        return at or self.length

    def cut(self) -> tuple[int, Rule]:
        size = len(self.zone)
        sampled = self._first_sampling()
        after = -1 if sampled is None else self._last_sampling(sampled)
        embedded = _first(self.embedding, after + 1, size)
        stop = size if embedded is None else embedded
        if sampled is None and self.waited_for.any():
            # No sampling here (logits go to the host): the copy that the device waits longest
            # behind.
            copies = np.flatnonzero(self.waited_for).tolist()
            copy: int | None = max(copies, key=lambda place: self._gap(place + 1))
            stop = max(stop, (copy or 0) + 1)
        else:
            copy = _first(self.to_host, sampled or 0, stop)
        if copy is not None:
            copy = self._last_copy(copy, stop)
        low = after + 1
        if sampled is None and copy is not None:  # those long before the copy are its own step's
            low = max(0, copy - INPUTS_WITHIN)
        inputs = _first(self.to_device, low, stop)
        if inputs is not None and (copy is None or inputs <= copy + INPUTS_WITHIN):
            place, by = self._before_inputs(copy, inputs)
            return self._offset(place), by
        if copy is not None:
            return self._offset(copy + 1), "copy to host"
        if self.graph_begins[after + 1 :].any():
            begins = after + 1 + int(np.argmax(self.graph_begins[after + 1 :]))
            if embedded is None or begins <= embedded:
                return self._offset(begins), "graph launch"
            # The lookup runs before the graph: the device waits for the token before it.
            place = max(range(after + 1, embedded + 1), key=self._gap)
            return self._offset(place), "idle"
        idle = self.idle[self.zone]
        here = idle[after + 1 : stop + 1]
        if len(here) and here.max() > 3 * max(500.0, float(np.median(self.idle))):
            return self._offset(after + 1 + int(np.argmax(here))), "idle"
        if embedded is not None:
            return self._offset(embedded), "embedding"
        if sampled is not None:
            return self._offset(after + 1), "sampling"
        return self._offset(int(np.argmax(idle))), "largest idle"

    def _first_sampling(self) -> int | None:
        """That of a draft model comes first, but no copy to the host behind it before the next
        embedding: where another has one, that one is the step's."""
        chosen = np.flatnonzero(self.sampling)
        if not len(chosen):
            return None
        copied = np.append(np.flatnonzero(self.to_host), len(self.zone))
        looked_up = np.append(np.flatnonzero(self.embedding), len(self.zone))
        until = copied[np.searchsorted(copied, chosen)]
        ends = (until < len(self.zone)) & (until < looked_up[np.searchsorted(looked_up, chosen)])
        return int(chosen[np.argmax(ends)]) if ends.any() else int(chosen[0])

    def _last_sampling(self, place: int) -> int:
        """The end of the sampling that begins there; one or two others in between may be."""
        while self.sampling[place + 1 : place + 4].any():
            place += 1 + int(np.argmax(self.sampling[place + 1 : place + 4]))
        return place

    def _last_copy(self, place: int, stop: int) -> int:
        """Tokens, lengths and flags may go to the host one by one."""
        copies, inputs = self.to_host, self.to_device
        while place + 1 < stop and (
            copies[place + 1] or (place + 2 < stop and copies[place + 2] and not inputs[place + 1])
        ):
            place += 1
        return place

    def _before_inputs(self, copy: int | None, inputs: int) -> tuple[int, Rule]:
        """What runs between the token's copy and the next inputs is the old step's where the
        device waits behind it."""
        low = inputs if copy is None or inputs <= copy else copy + 1
        if inputs <= low:
            return inputs, "copy to device"
        place = max(range(low, inputs + 1), key=lambda p: (self._gap(p), p))
        return place, "copy to device" if place == inputs else "idle"


def snapped(cuts: Ints, places: Ints, reach: int) -> Ints:
    """Each cut at the nearest of the places, where one is within ``reach`` rows."""
    if not len(places):
        return cuts
    at = np.searchsorted(places, cuts)
    left = places[np.maximum(at - 1, 0)]
    right = places[np.minimum(at, len(places) - 1)]
    near = np.where(np.abs(left - cuts) <= np.abs(right - cuts), left, right)
    return np.where(np.abs(near - cuts) <= reach, near, cuts)


def _first(flags: Flags, low: int, high: int) -> int | None:
    there = np.flatnonzero(flags[low:high])
    return low + int(there[0]) if len(there) else None
