"""Exports that Nsight Systems made, read as a run: processes are engines, NVTX ranges are steps.

Nothing is taken for granted: tables and columns differ between versions (EXPORT_META_DATA until
2022, ``graphId`` since 2026), and a table without rows is not there. Such a file has no index, so
the kernels are not walked over here: opening ten million of them takes as long as their ranges.
"""

from __future__ import annotations

import re
import sqlite3
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from statistics import median
from typing import Any

from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.records import (
    EngineInfo,
    EngineRecord,
    GpuDevice,
    Missing,
    RoundRecord,
    RunData,
    RunInfo,
    Warned,
)
from llmprof.runfile.codec import RowError
from llmprof.runfile.database import quoted

KERNELS, CALLS, RANGES = (
    "CUPTI_ACTIVITY_KIND_KERNEL",
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    "NVTX_EVENTS",
)
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
class _Range:
    start: int
    end: int
    domain: str
    text: str
    process: int
    """``globalTid >> 24``: hardware, virtual machine and process id in one number."""
    tid: int


def step_patterns(sql: sqlite3.Connection, tables: set[str]) -> list[StepPattern]:
    """Candidates, the best guess first; empty without NVTX ranges."""
    return _patterns(_ranges(sql, tables), _kernel_processes(sql, tables))


def read_foreign(
    sql: sqlite3.Connection, tables: set[str], path: str, step_range: str | None
) -> RunData:
    """The small rows of an export.

    Args:
        step_range: glob over NVTX texts (or ``domain:text``); by default the best guess.

    Raises:
        UsageError: ``step_range`` matches no range; the text names what is there.
    """
    busy = _kernel_processes(sql, tables)
    found = choose_steps(sql, tables, busy, step_range)
    chosen, steps = found.pattern, found.steps
    facts = _facts(sql, tables)
    data = RunData(
        RunInfo(
            t0_ns=0,
            t0_utc_ns=_first_int(sql, tables, "TARGET_INFO_SESSION_START_TIME", "utcEpochNs"),
            tool_version=facts.get("EXPORT_PRODUCT_VERSION", "?"),
            tool_commit=None,
            command=[],
            workload={},
            environment={
                "source": "Nsight Systems",
                "version": facts.get("EXPORT_PRODUCT_VERSION"),
                "export_schema": facts.get("EXPORT_SCHEMA_VERSION"),
                "step_range": chosen or None,
            },
            trace_level="full" if CALLS in tables else "kernels",
            state="finished",
            schedule="single",
            source="opened",
        ),
        path=path,
        gpu_devices=_devices(sql, tables),
    )
    data.missing.append(
        Missing("run", "timing pass", "the file was recorded by Nsight Systems: traced rounds only")
    )
    _add_engines(sql, tables, data, steps, busy, chosen)
    if not steps and busy:
        data.warnings.append(found.none_known())
    return data


@dataclass(frozen=True)
class Chosen:
    """Which NVTX ranges are the steps."""

    pattern: str
    """Empty: none is sure enough."""
    steps: list[_Range]
    patterns: list[StepPattern]

    def none_known(self) -> Warned:
        """What to say where there are no steps."""
        there = ", ".join(one_line(p.pattern, 60) for p in self.patterns[:3])
        hint = f"choose some with --step-range: {there}" if there else "the file has no NVTX ranges"
        return Warned("run", f"no steps are known, so totals only; {hint}")


def choose_steps(
    sql: sqlite3.Connection, tables: set[str], busy: Sequence[int], step_range: str | None
) -> Chosen:
    """The ranges that ``step_range`` names, or the best guess.

    Raises:
        UsageError: ``step_range`` matches no range; the text names what is there.
    """
    ranges = _ranges(sql, tables, step_range or "")
    if step_range and not ranges:
        ranges = _ranges(sql, tables)  # to say what there is
    patterns = _patterns(ranges, busy)
    sure = [p.pattern for p in patterns[:1] if p.score >= _SURE]
    chosen = step_range or "".join(sure)
    steps = [r for r in ranges if chosen and _matches(r, chosen)]
    if step_range and not steps:
        there = ", ".join(one_line(p.pattern, 60) for p in patterns[:5]) or "no NVTX range"
        raise UsageError(f"--step-range {one_line(step_range)}: no such range; there are: {there}")
    return Chosen(chosen, steps, patterns)


def _add_engines(
    sql: sqlite3.Connection,
    tables: set[str],
    data: RunData,
    steps: list[_Range],
    busy: list[int],
    chosen: str,
) -> None:
    names = _process_names(sql, tables)
    stepping = sorted({r.process for r in steps})
    used: set[str] = set()
    for process in [*stepping, *(p for p in busy if p not in stepping)]:
        pid = process & 0xFFFFFF
        label = one_line(names.get(process) or f"process {pid}", 40)
        if label in used:
            label = f"{label}#{pid}"
        if label in used:  # files of one run, merged: the same process on other hardware
            label = f"{label}.{process >> 32}"
        used.add(label)
        engine = EngineRecord(
            engine_id=len(data.engines),
            label=label,
            name=label,
            python="",
            options={},
            state="finished",
            info=EngineInfo(device="cuda:0" if process in busy else "cpu"),
            traced_pid=pid,
        )
        data.engines.append(engine)
        add_rounds(data, engine, process, steps, chosen, lambda: _kernel_span(sql, tables))


def add_rounds(
    data: RunData,
    engine: EngineRecord,
    process: int,
    steps: list[_Range],
    chosen: str,
    span: Callable[[], tuple[int, int] | None],
) -> None:
    """Traced rounds of one process: stretches of steps, or ``span`` where it has no steps.

    Args:
        steps: of all processes.
        chosen: the pattern that they match, for a warning.
    """
    mine = _one_thread([r for r in steps if r.process == process])
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
    steps: list[_Range],
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


def _one_thread(ranges: list[_Range]) -> list[_Range]:
    """Those of the thread with the most, outermost only, in order."""
    by_thread: dict[int, list[_Range]] = {}
    for r in ranges:
        by_thread.setdefault(r.tid, []).append(r)
    if not by_thread:
        return []
    most = max(by_thread.values(), key=lambda group: len(group))
    outer: list[_Range] = []
    for r in sorted(most, key=lambda r: (r.start, -r.end)):
        if not outer or r.start >= outer[-1].end:
            outer.append(r)
    return outer


def _split(ranges: list[_Range]) -> list[list[_Range]]:
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


def _matches(found: _Range, pattern: str) -> bool:
    return fnmatchcase(found.text, pattern) or (
        bool(found.domain) and fnmatchcase(f"{found.domain}:{found.text}", pattern)
    )


def _patterns(ranges: list[_Range], busy: Sequence[int]) -> list[StepPattern]:
    groups: dict[str, list[_Range]] = {}
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


def _score(members: list[_Range], total_ns: int, busy: Sequence[int]) -> float:
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


def _ranges(sql: sqlite3.Connection, tables: set[str], wanted: str = "") -> list[_Range]:
    """All ranges, or those that ``wanted`` may match: then the limit is on those."""
    if RANGES not in tables:
        return []
    there = columns_of(sql, RANGES)
    if not {"start", "end", "eventType"} <= there:
        raise RowError(f"{RANGES}: no column start, end or eventType")
    text = 'e."text"' if "text" in there else "NULL"
    join = ""
    if {"textId"} <= there and "StringIds" in tables:
        text, join = f"coalesce({text}, s.value)", "LEFT JOIN StringIds AS s ON s.id = e.textId"
    thread = "e.globalTid" if "globalTid" in there else "0"
    domain = "e.domainId" if "domainId" in there else "0"
    names: dict[tuple[int, int], str] = {}
    if {"text", "domainId"} <= there:
        rows = sql.execute(
            f'SELECT {thread}, e.domainId, e."text" FROM {RANGES} AS e WHERE eventType = 75'
        )
        names = {(_int(t) >> 24, d): str(name) for t, d, name in rows}
    types = ", ".join(map(str, _RANGE_TYPES))
    # A pattern with a domain is looked at in Python only; so is a class like [!a].
    plain = wanted if not set(wanted) & set(":[") else ""
    rows = sql.execute(
        f'SELECT e.start, e."end", {text}, coalesce({thread}, 0), {domain}'
        f" FROM {RANGES} AS e {join}"
        f' WHERE e.eventType IN ({types}) AND e."end" >= e.start'
        f" AND (:plain = '' OR {text} GLOB :plain) LIMIT {MAX_RANGES}",
        {"plain": plain},
    )
    found = []
    for start, end, name, tid, number in rows:
        if type(start) is int and type(end) is int and name:
            process, thread_id = _int(tid) >> 24, _int(tid) & 0xFFFFFF
            space = names.get((process, number), "")
            found.append(_Range(start, end, space, str(name), process, thread_id))
    return found


def _int(value: Any) -> int:
    return value if type(value) is int else 0


def last_row(sql: sqlite3.Connection, tables: set[str], table: str) -> int:
    """Highest rowid: the number of rows of a table that nothing was deleted from; no scan."""
    if table not in tables:
        return 0
    return int(sql.execute(f"SELECT coalesce(max(rowid), 0) FROM {quoted(table)}").fetchone()[0])


def _kernel_processes(sql: sqlite3.Connection, tables: set[str]) -> list[int]:
    """Processes with kernels. In a large table, those of rows all over it: a scan takes seconds."""
    total = last_row(sql, tables, KERNELS)
    if not total:
        return []
    if "globalPid" not in columns_of(sql, KERNELS):
        return [0]
    limit = ""
    if total > 500_000:
        rows = ", ".join(str(1 + i * (total - 1) // 1023) for i in range(1024))
        limit = f" WHERE rowid IN ({rows})"
    found = sql.execute(f"SELECT DISTINCT coalesce(globalPid, 0) >> 24 FROM {KERNELS}{limit}")
    return sorted(_int(row[0]) for row in found)


def _kernel_span(sql: sqlite3.Connection, tables: set[str]) -> tuple[int, int] | None:
    """From about the first start to about the last end, by the rows at both ends of the table."""
    total = last_row(sql, tables, KERNELS)
    if not total:
        return None
    edge = 2000
    rows = sql.execute(
        f'SELECT min(start), max("end") FROM {KERNELS} WHERE rowid <= ? OR rowid > ?',
        (edge, total - edge),
    ).fetchone()
    return (_int(rows[0]), _int(rows[1])) if rows[1] is not None else None


def _facts(sql: sqlite3.Connection, tables: set[str]) -> dict[str, str]:
    for table in ("META_DATA_EXPORT", "EXPORT_META_DATA"):
        if table in tables:
            rows = sql.execute(f"SELECT name, value FROM {table}")
            return {str(name): one_line(str(value), 60) for name, value in rows}
    return {}


def _first_int(sql: sqlite3.Connection, tables: set[str], table: str, column: str) -> int:
    if table not in tables or column not in columns_of(sql, table):
        return 0
    row = sql.execute(f"SELECT {column} FROM {table}").fetchone()
    return _int(row[0]) if row else 0


def _process_names(sql: sqlite3.Connection, tables: set[str]) -> dict[int, str]:
    if "PROCESSES" not in tables:
        return {}
    rows = sql.execute("SELECT globalPid, name FROM PROCESSES")
    return {_int(process) >> 24: str(name or "").rpartition("/")[2] for process, name in rows}


def _devices(sql: sqlite3.Connection, tables: set[str]) -> list[GpuDevice]:
    if "TARGET_INFO_GPU" not in tables:
        return []
    there = columns_of(sql, "TARGET_INFO_GPU")
    wanted = ("id", "name", "uuid", "busLocation", "totalMemory", "smCount")
    chosen = ", ".join(c if c in there else f"NULL AS {c}" for c in wanted)
    found = {}
    for row in sql.execute(f"SELECT {chosen} FROM TARGET_INFO_GPU"):
        number, name, uuid, bus, memory, count = tuple(row)
        if type(number) is int:
            found[number] = GpuDevice(
                index=number,
                name=one_line(str(name or "GPU")),
                uuid=one_line(str(uuid or "")),
                pci_bus_id=one_line(str(bus)) if bus else None,
                memory_total_mib=_int(memory) / 2**20 if memory else None,
                sm_count=_int(count) or None,
            )
    return list(found.values())
