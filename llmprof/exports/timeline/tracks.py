"""A run as tracks of slices and counters, for the formats that show a timeline.

One process an engine; its tracks are rounds (with prefill and steps inside), each stream's kernels
and copies (device by device), and API calls. Counters are the GPU's. All times are ns since the
start of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmprof.analysis.device.naming.categories import categorise, load_rules
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.sweep import COPY_NAMES
from llmprof.plaintext import one_line
from llmprof.records import RoundRecord, RunData
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import CopyRows, KernelRows, TraceRows

GPU = "GPU"
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
            for record in data.rounds_of(engine.engine_id, "traced"):
                rows = reader.trace_rows(record)
                kinds = categorise(rows.kernels.names, engine.name, rules)
                yield from _work(engine.engine_id + 1, label, rows, kinds)
                yield from _calls(engine.engine_id + 1, label, rows)
        yield from _samples(reader, data)


def _round(track: Track, record: RoundRecord) -> Iterator[Slice]:
    stamps = record.stamps_ns
    end = max([record.end_ns, *stamps])
    name = f"{record.pass_name} {record.index}"
    yield Slice(track, record.start_ns, end, name, record.pass_name, {"steps": record.steps})
    if len(stamps) and stamps[0] > record.prefill_start_ns:
        yield Slice(track, record.prefill_start_ns, stamps[0], "prefill", "prefill", {})
    for i, (begin, finish) in enumerate(pairwise(stamps), 1):
        yield Slice(track, begin, max(begin, finish), f"decode {i}", "decode", {"step": i})


def _work(pid: int, label: str, rows: TraceRows, kinds: dict[int, str]) -> Iterator[Slice]:
    kernels, copies = rows.kernels, rows.copies
    short = {number: short_name(name) for number, name in kernels.names.items()}
    places = sorted(
        {
            *zip(kernels.device.tolist(), kernels.stream.tolist(), strict=True),
            *zip(copies.device.tolist(), copies.stream.tolist(), strict=True),
        }
    )
    several = len({device for device, _ in places}) > 1
    for device, stream in places:
        name = f"GPU {device} stream {stream}" if several else f"stream {stream}"
        track = Track(pid, label, name, "stream")
        ran = ((kernels.device == device) & (kernels.stream == stream)).nonzero()[0]
        moved = ((copies.device == device) & (copies.stream == stream)).nonzero()[0]
        items = [
            *((int(kernels.start_ns[i]), i, True) for i in ran),
            *((int(copies.start_ns[i]), i, False) for i in moved),
        ]
        free = -(1 << 62)
        for start, i, is_kernel in sorted(items):
            # Slices of one track must not overlap, and a stream runs one thing after another.
            begin = max(start, free)
            if is_kernel:
                free = max(begin, int(kernels.end_ns[i]))
                yield _kernel(track, kernels, i, begin, free, short, kinds)
            else:
                free = max(begin, int(copies.end_ns[i]))
                yield _copy(track, copies, i, begin, free)


def _kernel(
    track: Track,
    rows: KernelRows,
    i: int,
    start: int,
    end: int,
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
    return Slice(track, start, end, short.get(number, "?"), kinds.get(number, "other"), args)


def _copy(track: Track, rows: CopyRows, i: int, start: int, end: int) -> Slice:
    name = {**COPY_NAMES, **rows.names}.get(int(rows.kind[i]), "[memcpy]")
    return Slice(track, start, end, name, "copy", {"bytes": int(rows.bytes[i])})


def _calls(pid: int, label: str, rows: TraceRows) -> Iterator[Slice]:
    api = rows.api
    for tid in sorted(set(api.tid.tolist())):
        track = Track(pid, label, f"CUDA API, thread {tid}", "api")
        free = -(1 << 62)
        for i in (api.tid == tid).nonzero()[0].tolist():
            start, end = int(api.start_ns[i]), int(api.end_ns[i])
            if start < free:
                continue  # a driver call inside its runtime call
            free = max(start, end)
            name = one_line(api.names.get(int(api.name_id[i]), "?"), 100)
            yield Slice(track, start, free, name, "api", {"correlation": int(api.correlation[i])})


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
