"""The GPU panel: clocks, bandwidth, power, temperature, use, memory, each with its history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from llmprof.analysis.view.frames.snapshot import GpuView, Snapshot
from llmprof.records import GpuSample
from llmprof.tui.drawing.cells import Row, Span, beside, clean, fit, fit_text, row, rule
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import known, number, plain

_LABEL: Final = 8
_VALUE: Final = 11
_NARROWEST: Final = 26
_BUCKETS_S: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)

Read = Callable[[GpuSample], "float | None"]


@dataclass(frozen=True)
class Meter:
    label: str
    unit: str
    read: Read
    top: float | None
    """End of the strip's scale; ``None``: the largest value in the history."""


def meters(gpu: GpuView) -> list[Meter]:
    device = gpu.device
    limit = device.power_limit_w if device else None
    total = device.memory_total_mib if device else None
    return [
        Meter(
            "SM clock", "MHz", lambda s: s.sm_clock_mhz, device.max_sm_clock_mhz if device else None
        ),
        Meter("power", "W", lambda s: s.power_w, limit),
        Meter("SM util", "%", lambda s: s.gpm_sm_util_pct, 100)
        if _seen(gpu, lambda s: s.gpm_sm_util_pct)
        else Meter("util", "%", lambda s: s.gpu_util_pct, 100),
        Meter("memory", "GiB", _memory_gib, total / 1024 if total else None),
        Meter(
            "mem clk",
            "MHz",
            lambda s: s.mem_clock_mhz,
            device.max_mem_clock_mhz if device else None,
        ),
        Meter("temp", "°C", lambda s: s.temperature_c, 100),
        Meter("DRAM bw", "%", lambda s: s.gpm_dram_bw_pct, 100),
    ]


def _memory_gib(sample: GpuSample) -> float | None:
    return None if sample.memory_used_mib is None else sample.memory_used_mib / 1024


def _seen(gpu: GpuView, read: Read) -> bool:
    return any(read(s) is not None for s in gpu.history)


def current(gpu: GpuView, read: Read) -> float | None:
    """The newest value: most samples lack those that NVML refreshes slowly. The median of a run
    that is over."""
    if gpu.decoding:
        there = [v for s in gpu.history if (v := read(s)) is not None]
        return median(there) if there else None
    samples = [*gpu.history, *([gpu.latest] if gpu.latest else [])]
    return next((v for s in reversed(samples) if (v := read(s)) is not None), None)


def strip(gpu: GpuView, meter: Meter, width: int, glyphs: Glyphs) -> str:
    """The history in ``width`` cells: the largest value of each slice of time.

    Slices begin at multiples of their length, so the strip moves one cell a slice and stands
    still between.
    """
    seen = [(s.timestamp_ns, v) for s in gpu.history if (v := meter.read(s)) is not None]
    if width < 1 or not seen:
        return ""
    span_s = (gpu.history[-1].timestamp_ns - gpu.history[0].timestamp_ns) / 1e9
    length = next((b for b in _BUCKETS_S if b * max(1, width - 1) >= span_s), span_s)
    slice_ns = max(1, round(length * 1e9))
    last = gpu.history[-1].timestamp_ns // slice_ns
    best: dict[int, float] = {}
    for stamp, value in seen:
        cell = width - 1 - (last - stamp // slice_ns)
        if cell >= 0:
            best[cell] = max(value, best.get(cell, value))
    top = meter.top or max(best.values()) or 1.0
    # Never a full cell: strips of two rows must not grow together.
    levels = len(glyphs.bars) - 2
    held = ""
    for x in range(width):
        if x in best:
            level = min(levels, max(1, round(best[x] / top * levels)))
            held += glyphs.bars[level]
        else:
            # A slice without a reading of a slow counter repeats the one before.
            held += held[-1:] or " "
    return held


def panel(snapshot: Snapshot, width: int, glyphs: Glyphs, room: int, focus: str = "") -> list[Row]:
    """At most ``room`` rows; one line where there is nothing to measure.

    Args:
        focus: label of an engine; of a run that is over, its timing rounds are shown.
    """
    gpus = snapshot.gpus
    if not gpus:
        return [_none("no sample yet", width, glyphs)]
    if len(gpus) == 1:
        return _one(gpus[0], snapshot, width, glyphs, room, focus)
    over = sorted({f"{gpu.pass_name} rounds, medians" for gpu in gpus if gpu.decoding})
    right = row(Span(" · ".join([f"{len(gpus)} devices", *over]), "dim"))
    out = [rule(row(Span("GPUs", "strong")), right, width, glyphs.track)]
    shown = [_while_decoding(gpu, focus)[1] if gpu.decoding else gpu for gpu in gpus]
    out += [_short(gpu, width) for gpu in shown[: max(1, room - 1)]]
    if len(gpus) > len(out) - 1:
        out[-1] = row(Span(f"and {len(gpus) - len(out) + 2} more", "dim"))
    return out


def _while_decoding(gpu: GpuView, focus: str) -> tuple[str, GpuView]:
    """The engine in focus, else the first, and the GPU with that engine's samples only."""
    label, samples = next((d for d in gpu.decoding if d[0] == focus), gpu.decoding[0])
    return label, replace(gpu, history=samples, latest=samples[-1])


def _none(why: str, width: int, glyphs: Glyphs) -> Row:
    return fit(row(Span("GPU  ", "strong"), Span(f"n/a: {clean(why)}", "dim")), width)


def _one(
    gpu: GpuView, snapshot: Snapshot, width: int, glyphs: Glyphs, room: int, focus: str
) -> list[Row]:
    if gpu.unavailable or gpu.device is None:
        return [_none(gpu.unavailable or "no device", width, glyphs)]
    if gpu.why_not_decoding and (gpu.latest or gpu.history):
        return [_none(f"{gpu.device.name}: {gpu.why_not_decoding}", width, glyphs)]
    if gpu.latest is None and not gpu.history:
        return [_none(f"{gpu.device.name}: no sample yet", width, glyphs)]
    title = row(Span(f"GPU {gpu.device.index} ", "strong"), Span(clean(gpu.device.name), "dim"))
    if gpu.decoding:
        label, gpu = _while_decoding(gpu, focus)
        title = (*title, Span(f" · {clean(label)}, {gpu.pass_name} rounds, medians", "dim"))
    out = [rule(title, _throttle(gpu), width, glyphs.track)]
    columns = max(1, min(4, width // _NARROWEST))
    each = width // columns
    cells = [_meter(gpu, meter, each - 2, glyphs) for meter in meters(gpu)]
    cells.append(_modelled(snapshot, each - 2))
    rows = -(-len(cells) // columns)
    blocks = [cells[i::columns] for i in range(columns)]
    body = beside(blocks, [each] * columns)
    return (out + body[:rows])[: max(1, room)]


def _throttle(gpu: GpuView) -> Row:
    if gpu.throttle:
        return row(Span(f"throttled: {', '.join(clean(t) for t in gpu.throttle)}", "warn"))
    known_mask = current(gpu, lambda s: s.throttle_mask) is not None
    return row(Span("not throttled" if known_mask else "throttle n/a", "dim"))


def _meter(gpu: GpuView, meter: Meter, width: int, glyphs: Glyphs) -> Row:
    value = current(gpu, meter.read)
    text = str(value) if isinstance(value, int) else number(value)
    history = strip(gpu, meter, width - _LABEL - _VALUE, glyphs)
    return row(
        Span(meter.label.ljust(_LABEL), "dim"),
        Span(text.rjust(5), "" if known(value) else "dim"),
        Span(f" {meter.unit if known(value) else '':<4}", "dim"),
        Span(f" {history}", "dim"),
    )


def _modelled(snapshot: Snapshot, width: int) -> Row:
    """Modelled share of peak of the engine that decodes now, beside the measured one."""
    busy = [e for e in snapshot.engines if e.state == "running" and known(e.roofline_share)]
    share = busy[0].roofline_share if len(busy) == 1 else None
    name = f" {clean(busy[0].label)}" if len(busy) == 1 else ""
    return row(
        Span("modelled", "dim"),
        Span(number(share, 100.0).rjust(5), "" if known(share) else "dim"),
        Span(fit_text(f" {'%' if known(share) else '':<4}{name}", width - _LABEL - 5), "dim"),
    )


def _short(gpu: GpuView, width: int) -> Row:
    if gpu.device is None or gpu.unavailable:
        return fit(row(Span(f"n/a: {clean(gpu.unavailable or 'no device')}", "dim")), width)
    if gpu.why_not_decoding:
        index = Span(f"{gpu.device.index:2d} ", "strong")
        return fit(row(index, Span(f"n/a: {clean(gpu.why_not_decoding)}", "dim")), width)
    spans = [
        Span(f"{gpu.device.index:2d} ", "strong"),
        Span(fit_text(clean(gpu.device.name), 12) + " ", "dim"),
    ]
    for meter in meters(gpu):
        value = current(gpu, meter.read)
        spans.append(Span("n/a".rjust(6) if value is None else plain(value).rjust(6)))
        spans.append(Span(f" {meter.unit}", "dim"))
    return fit((*spans, Span("  "), *_throttle(gpu)), width)
