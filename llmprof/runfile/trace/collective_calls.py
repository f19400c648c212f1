"""Calls of NCCL that recorded processes made, from what NCCL attaches to its NVTX ranges."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from llmprof.runfile import schema
from llmprof.runfile.activity import CALLS, KERNELS, columns
from llmprof.runfile.trace.rows import Ints

MOST = 4_000_000
"""Calls, and launches, that are read of a file."""
_NAMES = {
    "NCCL communicator ID": "communicator",
    "Message size [bytes]": "bytes",
    "No. of ranks": "ranks",
    "Rank": "rank",
}
"""As nvtx_payload_schemas.h (NCCL 2.25 to 2.30) calls its fields."""
_LIMITS = {"communicator": 2**64, "bytes": 2**62}


@dataclass(frozen=True, eq=False)
class CollectiveCalls:
    """Equal lengths, ordered by start; times as in ``TraceRows``."""

    start_ns: Ints
    end_ns: Ints
    tid: Ints
    kind: tuple[str, ...]
    """``AllReduce``: the function without ``nccl``."""
    bytes: Ints
    """As NCCL says it: what one rank sends (or, of a ReduceScatter, receives)."""
    communicator: Ints
    """Index into ``communicators``; -1: not said."""
    communicators: tuple[int, ...]
    """NCCL's hash of each: equal on all of its ranks."""
    ranks: tuple[int, ...]
    """How many ranks each communicator has; 0: not said, or before the recording."""
    launch_ns: Ints
    """Of all kernels of NCCL that the process launched on their own, ordered: the start of the
    launching call; empty where calls of CUDA were not recorded."""
    launch_tid: Ints

    def __len__(self) -> int:
        return len(self.start_ns)


def collective_calls(sql: sqlite3.Connection, tables: set[str]) -> dict[int, CollectiveCalls]:
    """Of each process (``globalPid >> 24``) in which NCCL said something."""
    if "NVTX_EVENTS" not in tables:
        return {}
    wanted = {"start", "end", "eventType", "text", "globalTid", "jsonText"}
    if not wanted <= set(columns(sql, "NVTX_EVENTS")):
        return {}
    rows = sql.execute(
        'SELECT globalTid >> 24, start, "end", globalTid & 16777215, "text", jsonText'
        f" FROM NVTX_EVENTS WHERE eventType = {schema.PUSH_POP} AND jsonText IS NOT NULL"
        " AND \"text\" LIKE 'nccl%' ORDER BY start LIMIT ?",
        (MOST,),
    )
    found: defaultdict[int, _Said] = defaultdict(_Said)
    for process, start, end, tid, name, text in rows:
        if type(process) is type(start) is type(end) is type(tid) is int:
            found[process].add((start, end, tid), str(name), _values(text))
    speaking = {process: said for process, said in found.items() if said.rows}
    launches = _launches(sql, tables) if speaking else {}
    return {process: said.calls(launches.get(process)) for process, said in speaking.items()}


class _Said:
    """What NCCL said in one process."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []
        self._kinds: list[str] = []
        self._numbers: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def add(self, place: tuple[int, int, int], name: str, values: dict[str, int]) -> None:
        hashed = values.get("communicator")
        # ncclCommSplit and ncclCommShrink (2.25 to 2.28) say how many the parent has.
        if hashed is not None and "ranks" in values and name.startswith("ncclCommInit"):
            self._sizes[hashed] = values["ranks"]
        if "bytes" in values and hashed != 0:
            number = -1
            if hashed is not None:
                number = self._numbers.setdefault(hashed, len(self._numbers))
            self.rows.append((*place, values["bytes"], number))
            self._kinds.append(name[len("nccl") :])

    def calls(self, launches: Ints | None) -> CollectiveCalls:
        table = np.array(self.rows, np.int64)
        if launches is None:
            launches = np.empty((0, 2), np.int64)
        return CollectiveCalls(
            start_ns=table[:, 0],
            end_ns=table[:, 1],
            tid=table[:, 2],
            kind=tuple(self._kinds),
            bytes=table[:, 3],
            communicator=table[:, 4],
            communicators=tuple(self._numbers),
            ranks=tuple(self._sizes.get(hashed, 0) for hashed in self._numbers),
            launch_ns=launches[:, 0],
            launch_tid=launches[:, 1],
        )


def _launches(sql: sqlite3.Connection, tables: set[str]) -> dict[int, Ints]:
    """Process → (start, thread) of the calls that launched NCCL's kernels outside of graphs, shape
    (n, 2). All processes in one look: 1 s for 1,000,000 kernels and calls."""
    if not {KERNELS, CALLS, "StringIds"} <= tables:
        return {}
    kernel = {"globalPid", "correlationId", "graphNodeId", "shortName"}
    call = {"start", "globalTid", "correlationId"}
    if not (kernel <= set(columns(sql, KERNELS)) and call <= set(columns(sql, CALLS))):
        return {}
    rows = sql.execute(
        f"SELECT c.globalTid >> 24, c.start, c.globalTid & 16777215 FROM {KERNELS} AS k"
        f" JOIN {CALLS} AS c ON c.correlationId = k.correlationId"
        " WHERE c.globalTid >> 24 = k.globalPid >> 24 AND ifnull(k.graphNodeId, 0) = 0"
        " AND k.shortName IN (SELECT id FROM StringIds WHERE value LIKE '%nccl%')"
        " ORDER BY c.start LIMIT ?",
        (MOST,),
    )
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for process, start, tid in rows:
        if type(process) is type(start) is type(tid) is int:
            found[process].append((start, tid))
    return {process: np.array(table, np.int64) for process, table in found.items()}


@lru_cache(maxsize=4096)
def _values(text: str) -> dict[str, int]:
    """What NCCL says of one call; nothing of a text that is no such object."""
    try:
        parsed: Any = json.loads(text)
    except (TypeError, ValueError):
        return {}
    if not isinstance(parsed, dict):
        return {}
    named = {_NAMES[key]: value for key, value in parsed.items() if key in _NAMES}
    return {k: v for k, v in named.items() if type(v) is int and 0 <= v < _LIMITS.get(k, 2**31)}
