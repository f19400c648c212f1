"""Calls of NCCL that a recorded process made, from what NCCL attaches to its NVTX ranges."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from llmprof.runfile import schema
from llmprof.runfile.activity import CALLS, KERNELS
from llmprof.runfile.trace.rows import Ints

MOST = 2_000_000
"""Calls of one process that are read."""
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


def collective_calls(
    sql: sqlite3.Connection, tables: set[str], process: int
) -> CollectiveCalls | None:
    """Of the process ``globalPid >> 24``; ``None`` where NCCL said nothing."""
    if "NVTX_EVENTS" not in tables:
        return None
    columns = {row[1] for row in sql.execute("PRAGMA table_info(NVTX_EVENTS)")}
    if "jsonText" not in columns:
        return None
    rows = sql.execute(
        'SELECT start, "end", globalTid & 16777215, "text", jsonText FROM NVTX_EVENTS'
        f" WHERE eventType = {schema.PUSH_POP} AND globalTid >> 24 = ? AND jsonText IS NOT NULL"
        " AND \"text\" LIKE 'nccl%' ORDER BY start LIMIT ?",
        (process, MOST),
    )
    found: list[tuple[int, int, int, int, int]] = []
    kinds: list[str] = []
    numbers: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for start, end, tid, name, text in rows:
        if not (type(start) is type(end) is type(tid) is int):
            continue
        values = _values(text)
        hashed = values.get("communicator")
        # ncclCommSplit and ncclCommShrink (2.25 to 2.28) say how many the parent has.
        if hashed is not None and "ranks" in values and str(name).startswith("ncclCommInit"):
            sizes[hashed] = values["ranks"]
        if "bytes" not in values or hashed == 0:
            continue
        number = -1 if hashed is None else numbers.setdefault(hashed, len(numbers))
        found.append((start, end, tid, values["bytes"], number))
        kinds.append(str(name)[len("nccl") :])
    if not found:
        return None
    table = np.array(found, np.int64)
    launches = _launches(sql, tables, process)
    return CollectiveCalls(
        start_ns=table[:, 0],
        end_ns=table[:, 1],
        tid=table[:, 2],
        kind=tuple(kinds),
        bytes=table[:, 3],
        communicator=table[:, 4],
        communicators=tuple(numbers),
        ranks=tuple(sizes.get(hashed, 0) for hashed in numbers),
        launch_ns=launches[:, 0],
        launch_tid=launches[:, 1],
    )


def _launches(sql: sqlite3.Connection, tables: set[str], process: int) -> Ints:
    """(start, thread) of the calls that launched NCCL's kernels outside of graphs, shape (n, 2)."""
    if not {KERNELS, CALLS, "StringIds"} <= tables:
        return np.empty((0, 2), np.int64)
    rows = sql.execute(
        f"SELECT c.start, c.globalTid & 16777215 FROM {KERNELS} AS k JOIN {CALLS} AS c"
        " ON c.correlationId = k.correlationId WHERE k.globalPid >> 24 = ? AND"
        " c.globalTid >> 24 = ? AND ifnull(k.graphNodeId, 0) = 0 AND k.shortName IN"
        " (SELECT id FROM StringIds WHERE value LIKE '%nccl%') ORDER BY c.start LIMIT ?",
        (process, process, MOST),
    )
    found = [(at, tid) for at, tid in rows if type(at) is type(tid) is int]
    return np.array(found, np.int64).reshape(-1, 2)


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
