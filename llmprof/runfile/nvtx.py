"""NVTX ranges of the run file: those made from a round's stamps, and operators' self time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llmprof.records import NvtxEvent, RoundRecord
from llmprof.runfile.schema import STEP_DOMAIN


class OpTotal(NamedTuple):
    """One operator: calls, and time in it but not in operators that it called."""

    name: str
    calls: int
    total_ns: int


def round_ranges(record: RoundRecord) -> list[NvtxEvent]:
    """``round N`` (``round N traced``) around ``prefill``, ``decode 1``, …: finished parts only.

    ``prefill`` starts strictly later than its round, by 1 ns where the stamps are equal: readers
    that nest by start time alone would take the round for the inner range. The round ends where its
    last part does, at the earliest.
    """
    stamps = record.stamps_ns
    name = f"round {record.index}" + (
        "" if record.pass_name == "timing" else f" {record.pass_name}"
    )

    def event(start: int, end: int, text: str) -> NvtxEvent:
        return NvtxEvent(start, max(start, end), text, record.pid, record.tid, STEP_DOMAIN)

    inner: list[NvtxEvent] = []
    if len(stamps):
        inner.append(event(max(record.prefill_start_ns, record.start_ns + 1), stamps[0], "prefill"))
    inner.extend(event(stamps[i - 1], stamps[i], f"decode {i}") for i in range(1, len(stamps)))
    end = max([record.end_ns, *(e.end_ns for e in inner)])
    return [event(record.start_ns, end, name), *inner]


def self_times(events: Iterable[tuple[int, int, int, str]]) -> list[OpTotal]:
    """Total self time by name, largest first.

    Self time is a range's duration less that of the ranges directly inside it, so the totals add up
    to the time that any range covers, each ns counted once. One sweep with a stack of open ranges:
    a range adds its duration to its own name and takes it off its parent's. A range that outlasts
    its parent is cut at the parent's end.

    Args:
        events: ``(thread, start_ns, end_ns, name)`` ordered by thread, start, then end descending.
    """
    counts: dict[str, int] = {}
    total_ns: dict[str, int] = {}
    open_ranges: list[tuple[int, str]] = []
    current = None
    for thread, start, end, name in events:
        if thread != current:
            open_ranges.clear()
            current = thread
        while open_ranges and open_ranges[-1][0] <= start:
            open_ranges.pop()
        if open_ranges:
            outer_end, outer = open_ranges[-1]
            end = min(end, outer_end)
            total_ns[outer] -= end - start
        counts[name] = counts.get(name, 0) + 1
        total_ns[name] = total_ns.get(name, 0) + end - start
        open_ranges.append((end, name))
    totals = [OpTotal(name, counts[name], ns) for name, ns in total_ns.items()]
    return sorted(totals, key=lambda op: (-op.total_ns, op.name))
