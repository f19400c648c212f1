"""A run as tracks of slices and counters, for the formats that show a timeline.

One process an engine; its tracks are rounds (with prefill and steps inside), each stream's kernels
and copies (device by device), and API calls. Counters are the GPU's. All times are ns since the
start of the file. Of a program that llmprof did not drive all work is here, of a step or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.naming.categories import categorise, load_rules
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.sweep import COPY_NAMES
from llmprof.analysis.timing.conditions import gpu_indices
from llmprof.analysis.view.opening import has_steps_to_find
from llmprof.plaintext import one_line
from llmprof.records import EngineRecord, RoundRecord, RunData
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import ApiRows, CopyRows, KernelRows, TraceRows

GPU = "GPU"
FAR_NS = 1 << 62
"""Longer than any recording."""
COUNTERS = (
    ("sm_clock_mhz", "SM clock", "MHz"),
    ("power_w", "power", "W"),
    ("temperature_c", "temperature", "C"),
    ("gpu_util_pct", "GPU utilisation", "%"),
    ("memory_used_mib", "memory used", "MiB"),
    ("gpm_dram_bw_pct", "DRAM bandwidth", "%"),
)


@dataclass(frozen=True)
class Track:
    """Where slices lie. ``pid`` groups tracks; it is the engine's number + 1, 0 for the GPUs."""

    pid: int
    process: str
    name: str
    kind: str
    """``rounds``, ``stream``, ``api`` or ``counter``."""
    unit: str = ""


@dataclass(frozen=True)
class Slice:
    """Something with a length. Slices of one track nest or follow each other."""

    track: Track
    start_ns: int
    end_ns: int
    name: str
    category: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A counter's value from now on."""

    track: Track
    time_ns: int
    value: float


def events(path: Path, data: RunData) -> Iterator[Slice | Point]:
    """Everything, track by track; within a track ordered by start.

    Raises:
        RunFileError: the file is damaged.
    """
    yield from _counters(data)
    rules = load_rules()
    with RunFileReader(path) as reader:
        for engine in data.engines:
            label = one_line(engine.label)
            track = Track(engine.engine_id + 1, label, "rounds", "rounds")
            for record in data.rounds:
                if record.engine_id == engine.engine_id:
                    yield from _round(track, record)
            tracks = _Tracks(engine.engine_id + 1, label, len(gpu_indices(engine)) > 1)
            for record, begin, end in _stretches(reader, data, engine):
                rows = reader.trace_rows(record)
                kinds = categorise(rows.kernels.names, engine.name, rules)
                yield from tracks.work(rows, kinds, begin, end)
                yield from tracks.calls(rows, begin, end)
        yield from _samples(reader, data)


def _stretches(
    reader: RunFileReader, data: RunData, engine: EngineRecord
) -> Iterator[tuple[RoundRecord, int, int]]:
    """What is read at once: a round, and what begins in it is of it from a time up to another.

    Rounds that were found leave out what lies between them, and what a reader gives of one (its
    calls from a second before it on) is in part of the one before. So the whole of the process is
    cut where they begin and end, and each row is of the piece that it begins in.
    """
    found = data.rounds_of(engine.engine_id, "traced")
    whole = [
        r
        for r in (reader.run_data().rounds if has_steps_to_find(data) else ())
        if r.engine_id == engine.engine_id and r.steps_from == "none"
    ]
    if len(whole) != 1:
        yield from ((record, -FAR_NS, FAR_NS) for record in found)
        return
    first, last = whole[0].start_ns, whole[0].end_ns
    times = {time for r in found for time in (r.start_ns, r.end_ns) if first < time < last}
    cuts = [first, *sorted(times), last]
    for number, (begin, end) in enumerate(pairwise(cuts), 1):
        yield (
            replace(whole[0], start_ns=begin, end_ns=end),
            begin if number > 1 else -FAR_NS,
            end if number < len(cuts) - 1 else FAR_NS,
        )


def _round(track: Track, record: RoundRecord) -> Iterator[Slice]:
    stamps = record.stamps_ns
    end = max([record.end_ns, *stamps])
    name = f"{record.pass_name} {record.index}"
    yield Slice(track, record.start_ns, end, name, record.pass_name, {"steps": record.steps})
    if len(stamps) and stamps[0] > record.prefill_start_ns:
        yield Slice(track, record.prefill_start_ns, stamps[0], "prefill", "prefill", {})
    for i, (begin, finish) in enumerate(pairwise(stamps), 1):
        phase = record.labels[i - 1].phase if record.labels else "decode"
        yield Slice(track, begin, max(begin, finish), f"{phase} {i}", phase, {"step": i})


class _Tracks:
    """Tracks of one engine, filled stretch by stretch."""

    def __init__(self, pid: int, label: str, several: bool) -> None:
        self._pid, self._label, self._several = pid, label, several
        self._free: dict[Track, int] = {}
        """Up to when a track is taken: its slices must not overlap."""

    def work(
        self, rows: TraceRows, kinds: dict[int, str], begin_ns: int, end_ns: int
    ) -> Iterator[Slice]:
        """Kernels and copies that begin from one time up to another, stream by stream."""
        kernels, copies = rows.kernels, rows.copies
        short = {number: short_name(name) for number, name in kernels.names.items()}
        places = sorted(
            {
                *zip(kernels.device.tolist(), kernels.stream.tolist(), strict=True),
                *zip(copies.device.tolist(), copies.stream.tolist(), strict=True),
            }
        )
        several = self._several or len({device for device, _ in places}) > 1
        for device, stream in places:
            name = f"GPU {device} stream {stream}" if several else f"stream {stream}"
            items = [
                (int(table.start_ns[i]), int(i), is_kernel)
                for table, is_kernel in ((kernels, True), (copies, False))
                for i in (
                    (table.device == device)
                    & (table.stream == stream)
                    & _inside(table, begin_ns, end_ns)
                ).nonzero()[0]
            ]
            for start, i, is_kernel in sorted(items):
                end = int((kernels if is_kernel else copies).end_ns[i])
                track = self._place(name, start, max(start, end))
                if is_kernel:
                    yield _kernel(track, kernels, i, short, kinds)
                else:
                    yield _copy(track, copies, i)

    def _place(self, name: str, start_ns: int, end_ns: int) -> Track:
        """A track of a stream that is free from then on. One stream may run two things at once: a
        kernel of a programmatic dependent launch begins before the one ahead of it has ended."""
        number = 1
        while True:
            words = name if number == 1 else f"{name}, at once {number}"
            track = Track(self._pid, self._label, words, "stream")
            if self._free.get(track, -FAR_NS) <= start_ns:
                self._free[track] = end_ns
                return track
            number += 1

    def calls(self, rows: TraceRows, begin_ns: int, end_ns: int) -> Iterator[Slice]:
        """API calls that begin from one time up to another, thread by thread."""
        api = rows.api
        inside = _inside(api, begin_ns, end_ns)
        for tid in sorted(set(api.tid.tolist())):
            track = Track(self._pid, self._label, f"CUDA API, thread {tid}", "api")
            free = self._free.get(track, -FAR_NS)
            for i in ((api.tid == tid) & inside).nonzero()[0].tolist():
                start, end = int(api.start_ns[i]), int(api.end_ns[i])
                if start < free:
                    continue  # a driver call inside its runtime call
                free = max(start, end)
                name = one_line(api.names.get(int(api.name_id[i]), "?"), 100)
                args = {"correlation": int(api.correlation[i])}
                yield Slice(track, start, free, name, "api", args)
            self._free[track] = free


def _inside(rows: KernelRows | CopyRows | ApiRows, begin_ns: int, end_ns: int) -> NDArray[np.bool_]:
    return np.logical_and(rows.start_ns >= begin_ns, rows.start_ns < end_ns)


def _kernel(
    track: Track,
    rows: KernelRows,
    i: int,
    short: dict[int, str],
    kinds: dict[int, str],
) -> Slice:
    number = int(rows.name_id[i])
    args = {
        "name": one_line(rows.names.get(number, ""), 500),
        "grid": f"{rows.grid_x[i]}x{rows.grid_y[i]}x{rows.grid_z[i]}",
        "block": f"{rows.block_x[i]}x{rows.block_y[i]}x{rows.block_z[i]}",
        "correlation": int(rows.correlation[i]),
        "graph_node": int(rows.graph_node[i]),
    }
    kind = kinds.get(number, "other")
    return Slice(track, *_times(rows, i), short.get(number, "?"), kind, args)


def _copy(track: Track, rows: CopyRows, i: int) -> Slice:
    name = {**COPY_NAMES, **rows.names}.get(int(rows.kind[i]), "[memcpy]")
    return Slice(track, *_times(rows, i), name, "copy", {"bytes": int(rows.bytes[i])})


def _times(rows: KernelRows | CopyRows, i: int) -> tuple[int, int]:
    start = int(rows.start_ns[i])
    return start, max(start, int(rows.end_ns[i]))


def _counters(data: RunData) -> Iterator[Point]:
    for device in sorted({s.device for s in data.gpu_samples}):
        for field, name, unit in COUNTERS:
            track = Track(0, GPU, f"GPU {device} {name}", "counter", unit)
            for sample in data.gpu_samples:
                value = getattr(sample, field)
                if sample.device == device and value is not None:
                    yield Point(track, sample.timestamp_ns, float(value))


def _samples(reader: RunFileReader, data: RunData) -> Iterator[Point]:
    """PM samples of the sampled rounds."""
    for record in data.rounds:
        found = reader.pm_samples(record.round_id) if record.pass_name == "sampled" else None
        if found is None:
            continue
        facts, pm = found
        for name, values in (("DRAM bandwidth", pm.dram_pct), ("SM active", pm.sm_active_pct)):
            track = Track(0, GPU, f"GPU {facts.device} {name}, PM sampling", "counter", "%")
            for start, value in zip(pm.start_ns.tolist(), values.tolist(), strict=True):
                if value == value:  # no NaN
                    yield Point(track, start, value)
