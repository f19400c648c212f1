"""What the host's CUDA calls say about a gap: which call launched what, and what ran meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.kernels import TracedRound
from llmprof.records import RoundRecord
from llmprof.runfile.trace.rows import ApiRows, Ints, TraceRows

Cause = Literal[
    "launch", "sync", "graph update", "allocator", "wait", "gil", "host", "device", "other process",
    "other GPU", "unknown",
]  # fmt: skip
LAUNCH_PACE_NS = 200_000
"""Launches no further apart than this are one burst: an eager operator takes 10–100 us of host."""
_CALLS: tuple[tuple[str, Cause], ...] = (
    ("Synchronize", "sync"),
    ("Query", "sync"),
    ("GraphExec", "graph update"),
    ("GraphInstantiate", "graph update"),
    ("GraphCreate", "graph update"),
    ("GraphAdd", "graph update"),
    ("Malloc", "allocator"),
    ("Free", "allocator"),
    ("MemAlloc", "allocator"),
    ("MemCreate", "allocator"),
    ("MemMap", "allocator"),
    ("MemUnmap", "allocator"),
    ("MemSetAccess", "allocator"),
)
"""Part of a CUDA call's name → cause. A blocking copy is told from ``cudaMemcpyAsync`` below."""


def share_out(total: int, weights: Mapping[Cause, float]) -> dict[Cause, int]:
    """Integers in proportion to the weights that add up to ``total`` (largest remainder)."""
    whole = sum(weights.values())
    exact = {cause: total * weight / whole for cause, weight in weights.items()}
    parts = {cause: int(value) for cause, value in exact.items()}
    ranked = sorted(exact, key=lambda cause: parts[cause] - exact[cause])
    for cause in ranked[: max(0, total - sum(parts.values()))]:
        parts[cause] += 1
    parts[ranked[0]] += total - sum(parts.values())  # floats of more than 53 bits
    return parts


def found_in(ordered: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """(place of each wanted value in a row that is not empty, is it there at all?)."""
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted


class Launches:
    """Which call launched what, and what the launching thread did when."""

    def __init__(self, traced: TracedRound, rows: TraceRows, record: RoundRecord) -> None:
        work, kernels, copies = traced.work.on(traced.laid.device), rows.kernels, rows.copies
        correlation = np.concatenate(
            [kernels.correlation[work.kernel_row], copies.correlation[work.copy_row]]
        )
        node = np.concatenate(
            [kernels.graph_node[work.kernel_row], copies.graph_node[work.copy_row]]
        )
        order = np.argsort(work.start_ns, kind="stable")
        self._starts = work.start_ns[order]
        self._correlation, self._node = correlation[order], node[order]
        by_end = np.argsort(work.end_ns, kind="stable")
        self._ends = work.end_ns[by_end]
        self._end_correlation, self._end_node = correlation[by_end], node[by_end]
        self.calls = _calls(rows.api, record)
        api = rows.api
        ids, first = np.unique(api.correlation, return_index=True)
        self._ids, self._begin = ids, api.start_ns[first]
        self._length = api.end_ns[first] - api.start_ns[first]
        self._graph = (self._node != 0) | work.whole_graph[order]

    def _next(self, end: int) -> int | None:
        """Row of the work that begins at the gap's end."""
        at = int(np.searchsorted(self._starts, end))
        return at if at < len(self._starts) and self._starts[at] == end else None

    def launched_ns(self, end: int) -> int | None:
        """Begin of the call that launched the work behind the gap."""
        at = self._next(end)
        if at is None or not len(self._ids):
            return None
        n = int(np.searchsorted(self._ids, self._correlation[at]))
        if n < len(self._ids) and self._ids[n] == self._correlation[at]:
            return int(self._begin[n])
        return None

    @cached_property
    def _first_of_graphs(self) -> Ints:
        """Rows of the work that every launch of a graph began with, in order."""
        rows = np.flatnonzero(self._graph)
        _, first = np.unique(self._correlation[rows], return_index=True)
        found: Ints = np.sort(rows[first])
        return found

    @property
    def graph_begins(self) -> Ints:
        """When each launch of a CUDA graph had its first work begin, ascending."""
        return self._starts[self._first_of_graphs]

    def graph_calls(self, end: Ints) -> Ints:
        """Begin of the call that launched the graph that ends each gap; -1: no graph does, or its
        call is not known."""
        first = self._first_of_graphs
        if not len(first) or not len(self._ids):
            return np.full(len(end), -1, np.int64)
        at, there = found_in(self._starts[first], end)
        call, known = found_in(self._ids, self._correlation[first[at]])
        found: Ints = np.where(there & known, self._begin[call], -1)
        return found

    @property
    def graph_call_ns(self) -> float:
        """Median length of the calls that launched graphs; 0 where none is known."""
        if not len(self._first_of_graphs) or not len(self._ids):
            return 0.0
        call, known = found_in(self._ids, self._correlation[self._first_of_graphs])
        return float(np.median(self._length[call[known]])) if known.any() else 0.0

    def queued(self, start: Ints, end: Ints) -> NDArray[np.bool_]:
        """Rule 1: was the work behind each gap there before the gap began?"""
        if not len(self._starts):
            return np.zeros(len(start), np.bool_)
        after, follows = found_in(self._starts, end)
        before, precedes = found_in(self._ends, start)
        graph = (self._end_correlation[before] == self._correlation[after]) & precedes
        graph &= (self._end_node[before] != 0) & (self._node[after] != 0)
        ahead = np.zeros(len(start), np.bool_)
        if len(self._ids):
            call, known = found_in(self._ids, self._correlation[after])
            ahead = known & (self._begin[call] <= start)
        found: NDArray[np.bool_] = follows & (graph | ahead)
        return found

    def split(
        self, start: int, end: int, weights: Mapping[Cause, float]
    ) -> Iterator[tuple[Cause, int]]:
        """Rule 2: the gap's ns by cause."""
        assert self.calls is not None
        calls = self.calls
        launched = self.launched_ns(end)
        stop = end if launched is None else max(start, min(end, launched))
        if end > stop:
            yield "launch", end - stop
        at = int(np.searchsorted(calls.end, start, "right"))
        now = start
        while now < stop:
            if at == len(calls.start) or calls.start[at] >= stop:
                yield from self._pause(at, now, stop, weights)
                return
            if calls.start[at] > now:
                yield from self._pause(at, now, int(calls.start[at]), weights)
                now = int(calls.start[at])
            until = min(stop, int(calls.end[at]))
            if until > now:
                yield calls.cause[at], until - now
                now = until
            at += 1

    def _pause(
        self, at: int, begin: int, finish: int, weights: Mapping[Cause, float]
    ) -> Iterator[tuple[Cause, int]]:
        """Between call ``at - 1`` and call ``at``."""
        calls = self.calls
        assert calls is not None
        before = int(calls.end[at - 1]) if at else begin
        behind = int(calls.start[at]) if at < len(calls.start) else finish
        if behind - before <= LAUNCH_PACE_NS:
            yield "launch", finish - begin
            return
        said = {c: w for c, w in weights.items() if c not in ("launch", "sync", "device")}
        yield from (share_out(finish - begin, said) if said else {"host": finish - begin}).items()  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class _Calls:
    """Calls of the launching thread, ordered, none inside another."""

    start: Ints
    end: Ints
    cause: tuple[Cause, ...]


def _calls(api: ApiRows, record: RoundRecord) -> _Calls | None:
    mine: NDArray[np.bool_] = api.pid == record.pid
    if not mine.any():
        return None
    threads, counts = np.unique(api.tid[mine], return_counts=True)
    # Of the round loop's thread; an engine may launch from another one.
    thread = record.tid if record.tid in threads else int(threads[np.argmax(counts)])
    chosen = np.flatnonzero(mine & (api.tid == thread))
    chosen = chosen[np.argsort(api.start_ns[chosen], kind="stable")]
    ends = np.maximum.accumulate(api.end_ns[chosen])
    # A runtime call holds the driver calls that it makes: the outer one counts.
    outer = np.concatenate([[True], api.end_ns[chosen][1:] > ends[:-1]])
    chosen = chosen[outer]
    names = {number: call_cause(name) for number, name in api.names.items()}
    return _Calls(
        api.start_ns[chosen],
        api.end_ns[chosen],
        tuple(names.get(int(n), "launch") for n in api.name_id[chosen]),
    )


def call_cause(name: str) -> Cause:
    """The cause that stands for the inside of a CUDA call."""
    base = name.split("_v", 1)[0].split("_ptsz", 1)[0]
    for part, cause in _CALLS:
        if part in base:
            return cause
    if base.startswith(("cudaMemcpy", "cuMemcpy")) and "Async" not in base:
        return "sync"
    return "launch"
