"""Host stacks of a trace of torch.profiler: its operators and Python functions, which are ranges.

They are exact, so they can be looked at like sampled ones at moments of our choice: what is said of
a step then has the error of the distance between two moments, and none from the sampling.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence

from llmprof.records import HostFrame, HostRound, RoundRecord
from llmprof.runfile import schema
from llmprof.runfile.trace.host_rows import HostRows, HostSample

MOMENTS = 20_000
"""At most, in a round."""
LEAST_NS = 5_000
"""Between two moments."""
THREADS = 4
"""Those with the most ranges."""
MOST = 1_000_000
"""Ranges of a round that are read."""
_PLACE = re.compile(r"^(.*?)\((\d{1,9})\): (.*)$", re.DOTALL)
"""``torch/nn/module.py(1532): forward``."""

_Range = tuple[int, int, int]
"""Start, end, text id."""


def recorded_stacks(
    sql: sqlite3.Connection, tables: set[str], record: RoundRecord
) -> HostRows | None:
    """The stacks of a round's process; ``None`` where no operators and functions were recorded."""
    if not {"NVTX_EVENTS", "StringIds"} <= tables:
        return None
    marks = ", ".join("?" * len(schema.HOST_DOMAINS))
    domains = [
        int(number)
        for (number,) in sql.execute(
            "SELECT DISTINCT domainId FROM NVTX_EVENTS WHERE eventType ="
            f" {schema.DOMAIN_CREATE} AND \"text\" IN ({marks}) AND typeof(domainId) = 'integer'",
            schema.HOST_DOMAINS,
        )
    ]
    if not domains or record.end_ns <= record.start_ns:
        return None
    threads: defaultdict[int, list[_Range]] = defaultdict(list)
    rows = sql.execute(
        'SELECT start, "end", textId, globalTid & 16777215 FROM NVTX_EVENTS'
        f" WHERE eventType = {schema.PUSH_POP} AND domainId IN ({', '.join(map(str, domains))})"
        ' AND globalTid >> 24 = ? AND "end" > ? AND start < ? LIMIT ?',
        (record.pid, record.start_ns, record.end_ns, MOST),
    )
    for start, end, text, tid in rows:
        if type(start) is type(end) is type(text) is type(tid) is int:
            threads[tid].append((start, end, text))
    if not threads:
        return None
    apart = max(LEAST_NS, (record.end_ns - record.start_ns) // MOMENTS)
    chosen = sorted(threads, key=lambda tid: (tid != record.tid, -len(threads[tid])))[:THREADS]
    samples = [
        HostSample(at, tid, stack)
        for tid in chosen
        for at, stack in _looks(threads[tid], record.start_ns, record.end_ns, apart)
    ]
    samples.sort(key=lambda sample: (sample.time_ns, sample.tid))
    if not samples:
        return None
    sampled = HostRound(
        round_id=record.round_id,
        rate_hz=round(1e9 / apart),
        native=False,
        blocking=False,
        samples=len(samples),
        undated=0,
        errors=0,
        error_ns=0,
        tick_ns=apart,
        first_ns=samples[0].time_ns,
        last_ns=samples[-1].time_ns,
    )
    used = {number for sample in samples for number in sample.stack}
    return HostRows(sampled, _frames(sql, sorted(used)), tuple(samples))


def _looks(
    ranges: list[_Range], start_ns: int, end_ns: int, apart: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Moments and what a thread was in, innermost first; moments outside of everything are none."""
    ranges.sort(key=lambda r: (r[0], -r[1]))
    open_now: list[_Range] = []
    at = 0
    for moment in range(start_ns + apart // 2, end_ns, apart):
        while at < len(ranges) and ranges[at][0] <= moment:
            open_now.append(ranges[at])
            at += 1
        open_now = [r for r in open_now if r[1] > moment]
        if open_now:
            yield moment, tuple(r[2] for r in reversed(open_now))


def _frames(sql: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, HostFrame]:
    found = {}
    for at in range(0, len(numbers), 500):
        part = numbers[at : at + 500]
        marks = ", ".join("?" * len(part))
        for number, text in sql.execute(
            f"SELECT id, value FROM StringIds WHERE id IN ({marks})", part
        ):
            found[int(number)] = _frame(int(number), str(text))
    return {n: found.get(n) or _frame(n, f"name {n}") for n in numbers}


def _frame(number: int, text: str) -> HostFrame:
    place = _PLACE.match(text)
    if place is None:
        return HostFrame(number, text, "", 0, "")
    return HostFrame(number, place[3], place[1], int(place[2]), "")
