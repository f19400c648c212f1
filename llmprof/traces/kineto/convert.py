"""A whole trace of torch.profiler into a file in Nsight Systems' schema."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line
from llmprof.records import GpuDevice
from llmprof.runfile import schema
from llmprof.runfile.foreign.source import TORCH, Source
from llmprof.runfile.writing.export_writer import CALL, COPY, KERNEL, RANGE, SET, ExportWriter
from llmprof.traces.demangling import demangled
from llmprof.traces.json_stream import Document, NotJson
from llmprof.traces.kineto.events import DOMAINS, GPU_THREADS, ON_GPU, Events
from llmprof.traces.kineto.fields import whole

HOUR_NS = 3600 * 10**9
Progress = Callable[[str, float | None], None]

_ABSOLUTE = re.compile(rb'"ts"\s*:\s*\d{16,}\.\d')
"""µs since 1970 with decimals: more digits than a double has."""
_EVENTS = ("traceEvents",)
_THREAD = 0xFFFFFF
"""Bits of ``globalTid`` that are the thread's."""


def convert(path: Path, out: ExportWriter, progress: Progress) -> None:
    """Read the trace ``path`` into ``out``.

    Raises:
        RunFileError: no trace of torch.profiler, or it cannot be read; the text says what to do.
    """
    name = one_line(str(path))
    document = Document(path)
    events = Events(out)
    size = max(1, path.stat().st_size)

    def advance() -> None:
        progress(f"reading {one_line(path.name, 40)}", min(1.0, document.done_bytes / size))

    take = events.take
    try:
        for _, event in document.elements(_EVENTS, _absolute(path), advance):
            take(event)
    except NotJson as why:
        raise RunFileError(f"{name}: is no JSON: it begins with {one_line(str(why), 40)}") from None
    if not events.known:
        raise RunFileError(f"{name}: {_what_else(document, events)}")
    main = _main_process(events)
    process = schema.global_pid(main)
    warnings = _mend(out, events, process)
    better = demangled([text for text in out.texts() if text.startswith("_Z")])
    out.rename(better)
    ranks = _ranks(document)
    _describe(out, events, document, ranks, main)
    base = whole(document.values.get("baseTimeNanoseconds"))
    origin = events.first_ns if events.first_ns < 1 << 62 else 0
    utc = base + origin if base or origin > 10**18 else 0
    source = Source(
        format=TORCH,
        version=f"schema {whole(document.values.get('schemaVersion'))}",
        file=str(path),
        ranks=ranks,
    )
    out.finish(source, origin, utc, process, [*_said(document, events), *warnings])


def _absolute(path: Path) -> bool:
    """Times need more than a double."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as text:
            return _ABSOLUTE.search(text.read(1 << 20)) is not None
    except (OSError, EOFError):
        return False  # what is wrong is said when it is read


def _what_else(document: Document, events: Events) -> str:
    """A JSON document without one event of Kineto's."""
    if "traceEvents" in document.values or events.unread:
        kinds = ", ".join(one_line(k, 30) for k, _ in events.unread.most_common(3)) or "none"
        return (
            "a Chrome trace, but not one of torch.profiler: no kernel, runtime call or operator"
            f" in it (categories: {kinds}); open it in ui.perfetto.dev"
        )
    keys = ", ".join(one_line(k, 30) for k in list(document.values)[:5]) or "nothing"
    if document.cut:
        return f"holds no event: {document.cut}; record the trace again"
    return (
        f"a JSON document, but no trace: it holds {keys}; llmprof opens run files, exports of"
        " Nsight Systems, and traces of torch.profiler and rocprofv3"
    )


def _main_process(events: Events) -> int:
    """The process that the device's work belongs to where no call says it."""
    real = {pid: n for pid, n in events.calls.items() if pid}
    if real:
        return max(real, key=lambda pid: (real[pid], -pid))
    labelled = [pid for pid, label in events.process_labels.items() if label.startswith("CPU")]
    return labelled[0] if labelled else 0


_NOBODYS = 1 << 48
"""Beyond any number of rows."""


def _shared_ids(out: ExportWriter) -> list[str]:
    """Calls of one process with one correlation id launched nobody knows what."""
    if not out.rows_of(CALL):
        return []
    shared = (
        f"SELECT correlationId FROM {CALL} WHERE correlationId > 0"
        " GROUP BY correlationId, globalTid >> 24 HAVING count(*) > 1"
    )
    (calls,) = out.execute(f"SELECT count(*) FROM {CALL} WHERE correlationId IN ({shared})")[0]
    if not calls:
        return []
    out.execute(f"CREATE TEMP TABLE shared AS {shared}")
    for number, table in enumerate((KERNEL, COPY, SET, CALL), 1):
        if out.rows_of(table):  # an id that nothing else has
            out.execute(
                f"UPDATE {table} SET correlationId = -({number} * {_NOBODYS} + rowid)"
                " WHERE correlationId IN (SELECT correlationId FROM temp.shared)"
            )
    return [f"{calls:,} calls share their correlation ids: what they launched is not known"]


def _mend(out: ExportWriter, events: Events, process: int) -> list[str]:
    """What can be said only when everything has been read."""
    warnings = []
    if events.first_ns > HOUR_NS and events.first_ns < 1 << 62:
        for table in (KERNEL, COPY, SET, CALL, RANGE):
            if out.rows_of(table):
                (gone,) = out.execute(f"SELECT count(*) FROM {table} WHERE start = 0")[0]
                if gone:
                    out.execute(f"DELETE FROM {table} WHERE start = 0")
                    events.untimed["zero"] += int(gone)
    if out.rows_of(KERNEL):
        (before,) = out.execute(f"SELECT count(*) FROM {KERNEL}")[0]
        out.execute(
            f'DELETE FROM {KERNEL} WHERE "end" > start AND rowid NOT IN (SELECT min(rowid) FROM'
            f' {KERNEL} GROUP BY start, "end", deviceId, streamId, correlationId, demangledName)'
        )
        twice = int(before) - int(out.execute(f"SELECT count(*) FROM {KERNEL}")[0][0])
        if twice:
            warnings.append(f"{twice:,} kernels stand in the file twice: counted once")
    warnings += _shared_ids(out)
    pids = [pid for pid in events.calls if pid]
    if len(pids) > 1 and out.rows_of(CALL):
        _give_processes(out)
    if 0 in events.calls and out.rows_of(RANGE):
        # Kineto writes the root frames of Python to process 0, thread 0.
        out.execute(
            f"UPDATE {RANGE} SET globalTid = ? | (globalTid & {_THREAD})"
            f" WHERE (globalTid & ~{_THREAD}) = {schema.VM} AND domainId <> {ON_GPU}",
            [process],
        )
    if out.rows_of(RANGE):
        out.execute(
            f"UPDATE {RANGE} SET globalTid = ? | (globalTid & {_THREAD}) WHERE domainId = {ON_GPU}",
            [process],
        )
    _number_graph_nodes(out, events)
    if events.unsized:
        _size_copies(out, events)
    return warnings


def _give_processes(out: ExportWriter) -> None:
    """Several processes in one file: a kernel belongs to the one that launched it."""
    out.execute(f"CREATE INDEX calls_by_id ON {CALL} (correlationId)")
    for table in (KERNEL, COPY, SET):
        if out.rows_of(table):
            out.execute(
                f"UPDATE {table} SET globalPid = (SELECT globalTid & ~{_THREAD} FROM {CALL} AS c"
                f" WHERE c.correlationId = {table}.correlationId LIMIT 1)"
            )
    out.execute("DROP INDEX calls_by_id")


def _number_graph_nodes(out: ExportWriter, events: Events) -> None:
    """Kernels of a graph launch without node ids (all of AMD's): numbered in order of start."""
    if not events.graph_launches or not out.rows_of(KERNEL):
        return
    rows = out.execute(
        f"SELECT rowid, correlationId FROM {KERNEL} WHERE graphNodeId IS NULL"
        " AND correlationId IS NOT NULL ORDER BY correlationId, start, rowid"
    )
    numbered, last, node = [], 0, 0
    for row, correlation in rows:
        if correlation in events.graph_launches:
            node = node + 1 if correlation == last else 1
            last = correlation
            numbered.append((node, row))
    out.execute_many(f"UPDATE {KERNEL} SET graphNodeId = ? WHERE rowid = ?", numbered)


def _size_copies(out: ExportWriter, events: Events) -> None:
    """Bytes of AMD's copies stand at the call; what stands nowhere is 0 in nsys' schema."""
    for table in (COPY, SET):
        if out.rows_of(table):
            rows = out.execute(f"SELECT rowid, correlationId FROM {table} WHERE bytes < 0")
            sizes = [(events.sizes.get(correlation, 0), row) for row, correlation in rows]
            out.execute_many(f"UPDATE {table} SET bytes = ? WHERE rowid = ?", sizes)


def _ranks(document: Document) -> tuple[int, int] | None:
    info = document.values.get("distributedInfo")
    if not isinstance(info, dict) or "rank" not in info:
        return None
    return whole(info["rank"]), max(1, whole(info.get("world_size"), 1))


def _describe(
    out: ExportWriter,
    events: Events,
    document: Document,
    ranks: tuple[int, int] | None,
    main: int,
) -> None:
    """Processes, threads, domains and devices."""
    processes = sorted({pid for pid in events.calls if pid} | {main})
    for pid in processes:
        label = events.process_names.get(pid) or TORCH
        if ranks is not None and ranks[1] > 1:
            label = f"rank {ranks[0]}" if pid == main else f"{label} of rank {ranks[0]}"
        process = schema.global_pid(pid)
        out.process(process, one_line(label, 60))
        for number, name in DOMAINS.items():
            out.domain(name, number, process)
    for (stream,) in (
        out.execute(f"SELECT DISTINCT globalTid FROM {RANGE} WHERE domainId = {ON_GPU}")
        if out.rows_of(RANGE)
        else ()
    ):
        if stream is not None:
            out.thread(int(stream), f"GPU stream {int(stream) & 0xFFFFFF ^ GPU_THREADS}")
    out.devices(_devices(events, document), [schema.global_pid(pid) for pid in processes])


def _devices(events: Events, document: Document) -> list[GpuDevice]:
    """Those that work was done on; AMD numbers them otherwise than ``deviceProperties`` does."""
    given = document.values.get("deviceProperties")
    listed = [d for d in given if isinstance(d, dict)] if isinstance(given, list) else []
    by_id = {whole(d.get("id"), -1): d for d in listed}
    alike = {str(d.get("name")) for d in listed}
    found = []
    for number in sorted(events.devices):
        facts = by_id.get(number) or (listed[0] if len(alike) == 1 and listed else {})
        found.append(_device(number, facts))
    return found


def _device(number: int, facts: dict[str, Any]) -> GpuDevice:
    amd = whole(facts.get("warpSize")) == 64
    name = facts.get("name")
    memory = whole(facts.get("totalGlobalMem"))
    capability = None
    with suppress(KeyError):
        if not amd:
            capability = whole(facts["computeMajor"]), whole(facts["computeMinor"])
    return GpuDevice(
        index=number,
        name=one_line(str(name), 60) if name else "AMD GPU" if amd else "GPU",
        uuid="",
        memory_total_mib=memory / 2**20 if memory else None,
        sm_count=whole(facts.get("numSms")) or None,
        compute_capability=capability,
    )


def _said(document: Document, events: Events) -> list[str]:
    """Warnings about what is in the file and what is not."""
    found = []
    if document.cut:
        found.append(
            f"the file is not whole ({document.cut}): its first {events.known:,} events are shown"
        )
    if document.broken:
        found.append(f"{document.broken:,} events are no valid JSON: left out")
    untimed = sum(events.untimed.values())
    if untimed:
        kinds = ", ".join(f"{one_line(k, 30)} {n:,}" for k, n in events.untimed.most_common(4))
        found.append(
            f"{untimed:,} events with a negative, zero or no time: left out ({kinds}); CUPTI"
            " writes such after too many records, so kernels may be missing"
        )
    unread = {k: n for k, n in events.unread.items() if k not in _HARMLESS}
    if unread:
        kinds = ", ".join(f"{one_line(k, 30)} {n:,}" for k, n in list(unread.items())[:6])
        found.append(f"events that are not read: {kinds}")
    if events.captures and events.launches > 10 * events.kernels:
        found.append(
            f"a graph was being captured here: {events.launches:,} launches, only"
            f" {events.kernels:,} kernels ran; open the trace of the graph's replay for its times"
        )
    elif not events.kernels and "cuda_profiler_range" in unread:
        found.append(
            "counters of single kernels (cuda_profiler_range) are in it, which are no kernel times:"
            " profile without them"
        )
    elif not events.kernels and document.cut:
        found.append("no kernel stands before its end: nothing is known of the GPU")
    elif not events.kernels:
        found.append(
            "no kernel in it: a trace of the CPU only, so nothing is known of the GPU"
            " (profile with ProfilerActivity.CUDA)"
        )
    return found


_HARMLESS = {"overhead", "Overhead", "ac2g", "fwdbwd"}
"""``overhead`` is the profiler's own: buffers being written."""
