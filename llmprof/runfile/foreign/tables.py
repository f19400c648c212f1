"""Exports of Nsight Systems, read as a run: processes are engines, NVTX ranges are steps.

Nothing is taken for granted: tables and columns differ between versions (EXPORT_META_DATA until
2022, ``graphId`` since 2026), and a table without rows is not there. Such a file has no index, so
the kernels are not walked over here: opening ten million of them takes as long as their ranges.
"""

from __future__ import annotations

import re
import sqlite3
from array import array
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from statistics import median
from typing import Any

from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.records import (
    EngineInfo,
    EngineRecord,
    Missing,
    RoundRecord,
    RunData,
    RunInfo,
    Warned,
)
from llmprof.runfile import activity
from llmprof.runfile.activity import CALLS, Columns
from llmprof.runfile.codec import RowError
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign import facts, notices, processes
from llmprof.runfile.foreign.source import TORCH, read_source
from llmprof.runfile.schema import GPU_DOMAIN, HOST_DOMAINS

RANGES = "NVTX_EVENTS"
MAX_RANGES = 1_000_000
"""NVTX ranges looked at; more than that are operators, not steps."""
PAUSE = 10
"""A pause between two ranges of so many median steps ends a round."""
_RANGE_TYPES = (59, 60, 70, 71)
"""Push/pop and start/end, of NVTX and of text imports."""
_LIKELY = (
    (4.0, re.compile(r"decode|next.?token|token.?\d", re.IGNORECASE)),
    (3.0, re.compile(r"ProfilerStep|execute_model|generat|iteration|\bstep\b|\biter\b", re.I)),
    (2.0, re.compile(r"forward|model|sample|batch", re.IGNORECASE)),
)
_OPERATOR = re.compile(r"^(aten|c10|cuda|cu[A-Z]|nccl|triton|autograd)|op_id|::")
_SURE = 2.0
"""A pattern below this is offered, but not chosen by itself."""


@dataclass(frozen=True)
class StepPattern:
    """NVTX ranges that could be the decode steps. Texts are untrusted."""

    pattern: str
    """For ``--step-range``: ``decode *``."""
    ranges: int
    median_ns: int
    example: str
    score: float
    """The highest is the guess."""


@dataclass(frozen=True, slots=True)
class StepRange:
    """An NVTX range that may be a step."""

    start: int
    end: int
    domain: str
    text: str
    process: int
    """``globalTid >> 24``: hardware, virtual machine and process id in one number."""
    tid: int


def step_patterns(sql: sqlite3.Connection, tables: set[str]) -> list[StepPattern]:
    """Candidates, the best guess first; empty without NVTX ranges."""
    return _patterns(_ranges(sql, tables), [*processes.devices_of(sql, tables)])


def read_foreign(
    sql: sqlite3.Connection, tables: set[str], path: str, step_range: str | None
) -> RunData:
    """The small rows of an export.

    Args:
        step_range: glob over NVTX texts (or ``domain:text``); by default the best guess.

    Raises:
        UsageError: ``step_range`` matches no range; the text names what is there.
    """
    devices = processes.devices_of(sql, tables)
    busy = [*devices]
    found = choose_steps(sql, tables, busy, step_range)
    chosen, steps = found.pattern, found.steps
    said, source = facts.all_of(sql, tables), read_source(sql, tables)
    data = RunData(
        RunInfo(
            t0_ns=0,
            t0_utc_ns=facts.wall_clock(sql, tables),
            tool_version=said.get("EXPORT_PRODUCT_VERSION", "?"),
            tool_commit=None,
            command=[],
            workload={},
            environment={
                "source": source.format,
                "version": said.get("EXPORT_PRODUCT_VERSION"),
                "export_schema": said.get("EXPORT_SCHEMA_VERSION"),
                "step_range": chosen or None,
            },
            trace_level="full" if CALLS in tables else "kernels",
            state="finished",
            schedule="single",
            source="opened",
        ),
        path=path,
        source_file=source.file,
        gpu_devices=facts.devices(sql, tables),
    )
    reason = f"the file was recorded by {source.format}: traced rounds only"
    data.missing.append(Missing("run", "timing pass", reason))
    data.missing += notices.not_read(sql, tables)
    data.warnings += notices.warnings(sql, tables)
    _add_engines(sql, tables, data, steps, devices, chosen)
    if not steps and busy:
        data.warnings.append(found.none_known())
    return data


@dataclass(frozen=True)
class Chosen:
    """Which NVTX ranges are the steps."""

    pattern: str
    """Empty: none is sure enough."""
    steps: list[StepRange]
    patterns: list[StepPattern]
    ranges: int
    """That were looked at."""

    def none_known(self) -> Warned:
        """What to say where there are no steps."""
        there = ", ".join(one_line(p.pattern, 60) for p in self.patterns[:3])
        hint = "no range occurs twice" if self.ranges else "the file has no NVTX ranges"
        hint = f"choose some with --step-range: {there}" if there else hint
        return Warned("run", f"no steps are known, so totals only; {hint}")


def choose_steps(
    sql: sqlite3.Connection,
    tables: set[str],
    busy: Sequence[int],
    step_range: str | None,
    of: Container[int] | None = None,
) -> Chosen:
    """The ranges that ``step_range`` names, or the best guess.

    Args:
        of: processes whose ranges count; all by default.

    Raises:
        UsageError: ``step_range`` matches no range; the text names what is there.
    """
    ranges = _ranges(sql, tables, step_range or "")
    if step_range and not ranges:
        ranges = _ranges(sql, tables)  # to say what there is
    if of is not None:
        ranges = [r for r in ranges if r.process in of]
    patterns = _patterns(ranges, busy)
    sure = [p.pattern for p in patterns[:1] if p.score >= _SURE]
    chosen = step_range or "".join(sure)
    steps = [r for r in ranges if chosen and matches(r, chosen)]
    if step_range and not steps:
        there = ", ".join(one_line(p.pattern, 60) for p in patterns[:5]) or "no NVTX range"
        raise UsageError(f"--step-range {one_line(step_range)}: no such range; there are: {there}")
    return Chosen(chosen, steps, patterns, len(ranges))


def _add_engines(
    sql: sqlite3.Connection,
    tables: set[str],
    data: RunData,
    steps: list[StepRange],
    devices: dict[int, list[int]],
    chosen: str,
) -> None:
    steps, lent = _lent(steps, devices)
    stepping = sorted({r.process for r in steps})
    order = [*stepping, *(p for p in devices if p not in stepping)]
    named = processes.names(sql, tables)
    labels = processes.labels([*(order or named), *lent], named)
    numbers = processes.gpu_numbers(sql, tables, devices)
    gpus = {gpu.index: gpu.name for gpu in data.gpu_devices}
    for process in order or named:  # a trace of the host alone
        label = labels[process]
        mine = devices.get(process, [])
        engine = EngineRecord(
            engine_id=len(data.engines),
            label=label,
            # Some rules for kernel names are an engine's.
            name="torch" if data.info.environment.get("source") == TORCH else label,
            python="",
            options={},
            state="finished",
            info=EngineInfo(
                device=processes.device_words(mine),
                notes=processes.gpu_notes(process, mine, numbers, gpus),
            ),
            traced_pid=process & 0xFFFFFF,
        )
        data.engines.append(engine)
        add_rounds(data, engine, process, steps, chosen, lambda: processes.work_span(sql, tables))
    for process, workers in lent.items():
        theirs = ", ".join(labels[worker] for worker in workers)
        data.warnings.append(
            Warned(
                "run",
                f"the ranges {one_line(chosen, 60)} are in {labels[process]}, which ran nothing on"
                f" a GPU; they are taken as the steps of {theirs}, whose work it is",
            )
        )
    for process in order:
        if process in {r.process for r in steps} and process not in devices and devices:
            theirs = ", ".join(labels[other] for other in devices)
            text = f"its process ran nothing on a GPU; GPU work is in {theirs}"
            data.warnings.append(Warned(labels[process], text))
    for gpu, users in processes.sharers(numbers).items():
        who = ", ".join(labels[user] for user in users if user in labels)
        data.warnings.append(
            Warned("run", f"GPU {gpu} is used by {who}: idle time of one is not the GPU's")
        )


def _lent(
    steps: list[StepRange], devices: dict[int, list[int]]
) -> tuple[list[StepRange], dict[int, list[int]]]:
    """Steps of a process without work, given to the processes that do the work.

    An engine may schedule in one process and compute in others. That is so where all steps are in
    processes without any work and one of them has them all; else nothing is moved. Returns the
    steps and process → workers.
    """
    stepping = {r.process for r in steps}
    if len(stepping) != 1 or stepping & devices.keys() or not devices:
        return steps, {}
    (driver,) = stepping
    moved = [replace(r, process=worker) for worker in devices for r in steps]
    return moved, {driver: [*devices]}


def add_rounds(
    data: RunData,
    engine: EngineRecord,
    process: int,
    steps: list[StepRange],
    chosen: str,
    span: Callable[[], tuple[int, int] | None],
) -> None:
    """Traced rounds of one process: stretches of steps, or ``span`` where it has no steps.

    Args:
        steps: of all processes.
        chosen: the pattern that they match, for a warning.
    """
    mine = _one_thread([r for r in steps if r.process == process])
    if left_out := _other_threads(mine, steps, process):
        data.warnings.append(Warned(engine.label, left_out))
    parts = _split(mine)
    number = max((r.round_id for r in data.rounds), default=0) + 1
    if not parts:
        whole = span()
        if whole is not None:
            data.rounds.append(_round(number, engine, process, 0, [], whole))
        return
    for index, part in enumerate(parts):
        data.rounds.append(_round(number + index, engine, process, index, part, None))
    if len(parts) > 1:
        longest = max(len(part) for part in parts)
        data.warnings.append(
            Warned(
                engine.label,
                f"pauses part the {len(mine)} ranges {one_line(chosen, 60)} into {len(parts)}"
                f" rounds; the longest, {longest} steps, is shown",
            )
        )


def _round(
    number: int,
    engine: EngineRecord,
    process: int,
    index: int,
    steps: list[StepRange],
    span: tuple[int, int] | None,
) -> RoundRecord:
    """A step lasts from the start of its range to that of the next one.

    So what follows a range (sampling, waiting) belongs to its step, and the first kernel of a step
    is never launched before it. The last step ends as long after its range as the median one.
    """
    stamps: array[int] = array("q", [r.start for r in steps])
    if steps:
        pauses = [max(0, b.start - a.end) for a, b in pairwise(steps)]
        stamps.append(steps[-1].end + (round(median(pauses)) if pauses else 0))
        start, end = stamps[0], stamps[-1]
    else:
        start, end = span or (0, 0)
    return RoundRecord(
        round_id=number,
        engine_id=engine.engine_id,
        pass_name="traced",
        index=index,
        pid=process,
        tid=steps[0].tid if steps else 0,
        start_ns=start,
        prefill_start_ns=start,
        stamps_ns=stamps,
        end_ns=end,
        complete=True,
    )


def _one_thread(ranges: list[StepRange]) -> list[StepRange]:
    """Those of the thread with the most, outermost only, in order."""
    by_thread: dict[int, list[StepRange]] = {}
    for r in ranges:
        by_thread.setdefault(r.tid, []).append(r)
    if not by_thread:
        return []
    most = max(by_thread.values(), key=lambda group: len(group))
    outer: list[StepRange] = []
    for r in sorted(most, key=lambda r: (r.start, -r.end)):
        if not outer or r.start >= outer[-1].end:
            outer.append(r)
    return outer


def _other_threads(mine: list[StepRange], steps: list[StepRange], process: int) -> str:
    """What is said of ranges of other threads: they are not steps, but their kernels count."""
    if not mine:
        return ""
    others = [r.tid for r in steps if r.process == process and r.tid != mine[0].tid]
    if not others:
        return ""
    threads = ", ".join(str(tid) for tid in sorted(set(others))[:5])
    return (
        f"{len(others)} such ranges of thread {threads} are not taken as steps (those of thread"
        f" {mine[0].tid} are); kernels that they launched count all the same"
    )


def _split(ranges: list[StepRange]) -> list[list[StepRange]]:
    """Rounds: stretches without a long pause, in order."""
    if not ranges:
        return []
    typical = median([b.start - a.start for a, b in pairwise(ranges)] or [0])
    parts = [[ranges[0]]]
    for before, behind in pairwise(ranges):
        if behind.start - before.end > PAUSE * max(typical, 1):
            parts.append([])
        parts[-1].append(behind)
    return parts


def matches(found: StepRange, pattern: str) -> bool:
    """Is the text, or ``domain:text``, as the glob says?"""
    return fnmatchcase(found.text, pattern) or (
        bool(found.domain) and fnmatchcase(f"{found.domain}:{found.text}", pattern)
    )


def _patterns(ranges: list[StepRange], busy: Sequence[int]) -> list[StepPattern]:
    groups: dict[str, list[StepRange]] = {}
    shapes: dict[str, str] = {}
    for r in ranges:
        if r.text not in shapes:
            plain = re.sub(r"[*?\[\]]", "?", r.text)
            shapes[r.text] = re.sub(r"\d+", "*", plain)[:200]
        groups.setdefault(shapes[r.text], []).append(r)
    found = []
    for pattern, members in groups.items():
        if len(members) >= 2 and pattern:
            lengths = sorted(r.end - r.start for r in members)
            found.append(
                StepPattern(
                    pattern=pattern,
                    ranges=len(members),
                    median_ns=lengths[len(lengths) // 2],
                    example=members[0].text,
                    score=_score(members, sum(lengths), busy),
                )
            )
    return sorted(found, key=lambda p: (-p.score, p.pattern))


def _score(members: list[StepRange], total_ns: int, busy: Sequence[int]) -> float:
    """A name that says step, time that is covered, a process that runs kernels."""
    text = members[0].text
    score = next((bonus for bonus, words in _LIKELY if words.search(text)), 0.0)
    score -= 3.0 * bool(_OPERATOR.search(text))
    span = max(r.end for r in members) - min(r.start for r in members)
    score += min(1.0, total_ns / max(1, span))
    score += 0.5 * (len(members) >= 5) + (members[0].process in busy)
    return score


# -- tables ------------------------------------------------------------------------------------


def columns_of(sql: sqlite3.Connection, table: str) -> set[str]:
    """Names of the columns that this version has."""
    return {str(row[1]) for row in sql.execute(f"PRAGMA table_info({quoted(table)})")}


def range_table(tables: set[str]) -> str | None:
    """The table of NVTX ranges, by its usual name or that of a newer version of it."""
    if RANGES in tables:
        return RANGES
    newer = [table for table in tables if re.fullmatch(rf"{RANGES}_V\d+", table, re.IGNORECASE)]
    return max(newer, key=lambda table: int(table.rpartition("V")[2]), default=None)


def _ranges(sql: sqlite3.Connection, tables: set[str], wanted: str = "") -> list[StepRange]:
    """All ranges, or those that ``wanted`` may match: then the limit is on those."""
    table = range_table(tables)
    if table is None:
        return []
    there = columns_of(sql, table)
    if not {"start", "end", "eventType"} <= there:
        raise RowError(f"{table}: no column start, end or eventType")
    when = Columns(activity.columns(sql, table))
    begin, finish = when.time("start"), when.time("end")
    text = 'e."text"' if "text" in there else "NULL"
    join = ""
    if {"textId"} <= there and "StringIds" in tables:
        text, join = f"coalesce({text}, s.value)", "LEFT JOIN StringIds AS s ON s.id = e.textId"
    thread = "e.globalTid" if "globalTid" in there else "0"
    domain = "e.domainId" if "domainId" in there else "0"
    names: dict[tuple[int, int], str] = {}
    if {"text", "domainId"} <= there:
        rows = sql.execute(
            f'SELECT {thread}, e.domainId, e."text" FROM {quoted(table)} AS e WHERE eventType = 75'
        )
        names = {(_int(t) >> 24, d): str(name) for t, d, name in rows}
    types = ", ".join(map(str, _RANGE_TYPES))
    # Operators and Python functions: too many to be looked at, and never the steps.
    calls = {number for _, number in names} - {
        number for (_, number), name in names.items() if name not in HOST_DOMAINS
    }
    skipped = ", ".join(str(number) for number in sorted(map(_int, calls))) or "-1"
    # A pattern with a domain is looked at in Python only; so is a class like [!a].
    plain = wanted if not set(wanted) & set(":[") else ""
    rows = sql.execute(
        f"SELECT {begin}, {finish}, {text}, coalesce({thread}, 0), {domain}"
        f" FROM {quoted(table)} AS e {join}"
        f' WHERE e.eventType IN ({types}) AND e."end" >= e.start'
        f" AND coalesce({domain}, 0) NOT IN ({skipped})"
        f" AND (:plain = '' OR {text} GLOB :plain) LIMIT {MAX_RANGES}",
        {"plain": plain},
    )
    found = []
    for start, end, name, tid, number in rows:
        if type(start) is int and type(end) is int and name:
            process, thread_id = _int(tid) >> 24, _int(tid) & 0xFFFFFF
            space = names.get((process, number), "")
            found.append(StepRange(start, end, space, str(name), process, thread_id))
    # The same ranges again, as torch.profiler drew them over a stream.
    of_host = [r for r in found if r.domain != GPU_DOMAIN]
    return of_host or found


def _int(value: Any) -> int:
    return value if type(value) is int else 0


def last_row(sql: sqlite3.Connection, tables: set[str], table: str) -> int:
    """Highest rowid: the number of rows of a table that nothing was deleted from; no scan."""
    if table not in tables:
        return 0
    return int(sql.execute(f"SELECT coalesce(max(rowid), 0) FROM {quoted(table)}").fetchone()[0])
