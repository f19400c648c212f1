"""Which round of an engine is analysed, how much of it, and beside whom."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from llmprof.analysis.device.kernels import TracedRound, others_ns
from llmprof.analysis.device.sweep import Spans, merged_spans
from llmprof.records import EngineRecord, RoundRecord, RunData
from llmprof.runfile.trace.rows import TraceRows


def longest(data: RunData, engine: EngineRecord) -> RoundRecord | None:
    """The traced round with the most steps."""
    rounds = data.rounds_of(engine.engine_id, "traced")
    return max(rounds, key=lambda record: record.steps, default=None)


def shortened(record: RoundRecord, end_ns: int) -> RoundRecord:
    """Only the steps that ended by ``end_ns``; a round without steps ends there."""
    kept = array("q", (stamp for stamp in record.stamps_ns if stamp <= end_ns))
    labels = record.labels[: max(0, len(kept) - 1)]
    return replace(record, stamps_ns=kept, end_ns=kept[-1] if kept else end_ns, labels=labels)


def between(record: RoundRecord, begin_ns: int, end_ns: int) -> RoundRecord | None:
    """Only the steps that lie within; ``None``: there are none."""
    stamps = record.stamps_ns
    first, last = bisect_left(stamps, begin_ns), bisect_right(stamps, end_ns) - 1
    if last <= first:
        return None
    return replace(
        record,
        start_ns=stamps[first] if first else max(record.start_ns, begin_ns),
        prefill_start_ns=stamps[first] if first else max(record.prefill_start_ns, begin_ns),
        stamps_ns=stamps[first : last + 1],
        end_ns=stamps[last] if last + 1 < len(stamps) else min(record.end_ns, end_ns),
        labels=record.labels[first:last],
    )


def without_pauses(record: RoundRecord) -> list[RoundRecord]:
    """The parts of a round between its pauses."""
    stamps = record.stamps_ns
    begins, ends = [0], []
    for n, label in enumerate(record.labels):
        if label.phase == "pause":
            ends.append(n)
            begins.append(n + 1)
    ends.append(record.steps)
    parts = [
        between(record, stamps[first], stamps[last])
        for first, last in zip(begins, ends, strict=True)
        if last > first
    ]
    return [part for part in parts if part is not None]


def cut_words(whole: RoundRecord, kept: RoundRecord, limit: int) -> str:
    if not whole.steps:
        return f"the first {limit:,} kernels are analysed, there are more"
    if not kept.steps:
        return f"its first step has more than {limit:,} kernels: too many to analyse"
    return (
        f"kernels are analysed for the first {kept.steps:,} of {whole.steps:,} steps:"
        f" there are more than {limit:,}"
    )


def of_threads(
    rows: TraceRows, record: RoundRecord
) -> tuple[TraceRows, dict[int, Spans], tuple[str, ...]]:
    """Without what threads launched that have steps of their own; when that ran, by device; and
    what is said of it."""
    if not record.other_tids:
        return rows, {}, ()
    threads = ", ".join(map(str, record.other_tids[:5]))
    if not len(rows.api):
        text = (
            f"kernels that thread {threads} launched count too: the file has no API calls to tell"
            " them apart"
        )
        return rows, {}, (text,)
    mine, theirs = rows.split_threads(record.other_tids)
    gone = len(theirs.kernels) + len(theirs.copies)
    if not gone:
        return rows, {}, ()
    spans = merged_spans(
        {
            int(n): (part.start_ns[part.device == n], part.end_ns[part.device == n])
            for n in np.unique(part.device)
        }
        for part in (theirs.kernels, theirs.copies)
    )
    return (
        mine,
        spans,
        (
            f"{gone} kernels and copies that thread {threads} launched are left out: it has steps"
            " of its own",
        ),
    )


def why_no_kernels(data: RunData, label: str) -> str:
    """The reason that the run gives, or the usual one."""
    level = "kernels were not traced (--trace steps)"
    usual = level if data.info.trace_level == "steps" else "the trace holds no kernel"
    return data.why_missing(label, "kernels") or usual


def why_no_host(data: RunData, label: str) -> str:
    """The same for host stacks."""
    usual = "host stacks were not sampled"
    level = " (--trace steps)" if data.info.trace_level == "steps" else ""
    return data.why_missing(label, "host") or usual + level


def sharing(traced: TracedRound) -> Iterator[str]:
    """Idle time of a process in which the device was another's."""
    for timeline in traced.devices:
        taken = int(others_ns(traced, timeline).sum())
        idle = int((timeline.wall_ns() - timeline.busy_ns()).sum())
        if taken:
            yield (
                f"work that is not this engine's (other processes, other threads) is on GPU"
                f" {timeline.device} too: idle is the engine's, not the GPU's; that work fills"
                f" {taken / idle:.0%} of it"
            )
