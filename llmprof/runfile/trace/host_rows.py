"""Sampled host stacks of one traced round, as the reader gives them."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmprof.records import HostFrame, HostRound
from llmprof.runfile.codec import RowError
from llmprof.runfile.schema import global_pid


@dataclass(frozen=True)
class HostSample:
    """One thread at one moment."""

    time_ns: int
    """On the axis of the run."""
    tid: int
    stack: tuple[int, ...]
    """Keys into ``HostRows.frames``, innermost first."""


@dataclass(frozen=True)
class HostRows:
    sampled: HostRound
    frames: dict[int, HostFrame]
    samples: tuple[HostSample, ...]
    """Oldest first."""


def together(rounds: Sequence[HostRound]) -> HostRound:
    """One round over all stretches of sampling."""
    first = rounds[0]
    if len(rounds) == 1:
        return first
    return replace(
        first,
        samples=sum(r.samples for r in rounds),
        undated=sum(r.undated for r in rounds),
        errors=sum(r.errors for r in rounds),
        error_ns=max(r.error_ns for r in rounds),
        tick_ns=max(r.tick_ns for r in rounds),
        first_ns=min(r.first_ns for r in rounds),
        last_ns=max(r.last_ns for r in rounds),
        threads={tid: name for r in rounds for tid, name in r.threads.items()},
    )


def read_samples(
    sql: sqlite3.Connection, pid: int, start_ns: int, end_ns: int
) -> tuple[HostSample, ...]:
    """Samples of a process between two times, inclusive.

    Raises:
        RowError: a cell that is no integer.
    """
    window = (global_pid(pid), start_ns, end_ns)
    where = "WHERE e.globalTid & ~0xFFFFFF = ? AND e.start >= ? AND e.start <= ?"
    stacks: defaultdict[int, list[int]] = defaultdict(list)
    chains = sql.execute(
        "SELECT c.id, c.symbol FROM SAMPLING_CALLCHAINS AS c JOIN COMPOSITE_EVENTS AS e"
        f" ON e.id = c.id {where} ORDER BY c.id, c.stackDepth",
        window,
    )
    for number, symbol in chains:
        stacks[number].append(symbol)
    events = sql.execute(
        f"SELECT e.id, e.start, e.globalTid & 0xFFFFFF FROM COMPOSITE_EVENTS AS e {where}"
        " ORDER BY e.start, e.id",
        window,
    )
    found = []
    for number, start, tid in events:
        stack = stacks.get(number, [])
        if not all(type(x) is int for x in (start, tid, *stack)):
            raise RowError("a host sample holds something else than integers")
        found.append(HostSample(start, tid, tuple(stack)))
    return tuple(found)
