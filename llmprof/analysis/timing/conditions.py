"""Under which conditions an engine decoded: clocks, throttling, temperature, power.

Only GPU samples that fall into the decode windows of an engine's timing rounds count: between
rounds the GPU idles and clocks down, which says nothing about the measurement. A program that
llmprof did not drive has its traced rounds for that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from llmprof.records import (
    EngineRecord,
    GpuSample,
    Maybe,
    RoundRecord,
    RunData,
    Unavailable,
    Warned,
)
from llmprof.records.throttle import throttle_names

CLOCK_DRIFT = 0.02
"""Engines whose median SM clocks differ by more than this share were not measured alike."""


@dataclass(frozen=True)
class Span:
    """Smallest, median and largest value seen."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Conditions:
    """What NVML saw of the engine's GPU while the engine decoded."""

    device: int
    samples: int
    sm_clock_mhz: Span | None
    mem_clock_mhz: Span | None
    temperature_c: Span | None
    power_w: Span | None
    throttle: tuple[tuple[str, float], ...]
    """(reason, share of the samples that had it), most frequent first."""
    memory_used_mib: Span | None = None
    further: tuple[Conditions, ...] = ()
    """Of the engine's other GPUs."""


def gpu_index(engine: EngineRecord) -> int | None:
    """N of an engine on ``cuda:N``, the first of one on ``cuda:N,M``; ``None`` on a CPU or before
    the engine has loaded."""
    device = engine.info.device if engine.info else ""
    kind, _, numbers = device.partition(":")
    if kind != "cuda":
        return None
    number = numbers.partition(",")[0]
    return int(number) if number.isdecimal() else 0


def gpu_indices(engine: EngineRecord) -> list[int]:
    """All GPUs of an engine: 0, 1 of one on ``cuda:0,1``; none on a CPU."""
    first = gpu_index(engine)
    if first is None or engine.info is None:
        return []
    words = engine.info.device.partition(":")[2].split(",")
    return [first, *(int(word) for word in words[1:] if word.isdecimal())]


def missing_reason(data: RunData, scopes: Iterable[str], word: str) -> str | None:
    """Why the run has no such value: the reason of the first matching ``Missing`` row."""
    wanted = set(scopes)
    for row in data.missing:
        if row.scope in wanted and word in row.name:
            return row.reason
    return None


def samples_while_decoding(
    samples: Sequence[GpuSample], rounds: Sequence[RoundRecord], device: int, settle_ns: int = 0
) -> list[GpuSample]:
    """The device's samples between prefill's end (+ ``settle_ns``) and the end of a round."""
    windows = sorted((r.stamps_ns[0] + settle_ns, r.end_ns) for r in rounds if r.steps)
    starts = [start for start, _ in windows]
    found = []
    for sample in samples:
        if sample.device == device:
            at = bisect_right(starts, sample.timestamp_ns) - 1  # rounds do not overlap
            if at >= 0 and sample.timestamp_ns <= windows[at][1]:
                found.append(sample)
    return found


def conditions(data: RunData, engine: EngineRecord) -> Conditions | Unavailable:
    """Conditions of one engine's timing pass, or of its steps as traced where there is no other."""
    devices = gpu_indices(engine)
    if not devices:
        return Unavailable("GPU conditions are for engines on a GPU")
    first, *others = (_conditions_on(data, engine, device) for device in devices)
    if isinstance(first, Unavailable):
        return first
    return replace(first, further=tuple(c for c in others if isinstance(c, Conditions)))


def _conditions_on(data: RunData, engine: EngineRecord, device: int) -> Conditions | Unavailable:
    found = conditions_of(data, data.rounds_of(engine.engine_id), device, engine.label)
    if isinstance(found, Unavailable) and data.info.source != "driven":
        traced = data.rounds_of(engine.engine_id, "traced")
        return conditions_of(data, traced, device, engine.label)
    return found


def conditions_of(
    data: RunData, rounds: Sequence[RoundRecord], device: int, label: str
) -> Conditions | Unavailable:
    """Conditions of one GPU while the engine ``label`` decoded in these rounds."""
    seen = samples_while_decoding(data.gpu_samples, rounds, device)
    if not seen:
        reason = missing_reason(data, ("run", f"gpu{device}"), "nvml")
        return Unavailable(reason or f"no NVML sample of GPU {device} while {label} decoded")
    return Conditions(
        device=device,
        samples=len(seen),
        sm_clock_mhz=_span(s.sm_clock_mhz for s in seen),
        mem_clock_mhz=_span(s.mem_clock_mhz for s in seen),
        temperature_c=_span(s.temperature_c for s in seen),
        power_w=_span(s.power_w for s in seen),
        memory_used_mib=_span(s.memory_used_mib for s in seen),
        throttle=_throttle([s.throttle_mask for s in seen if s.throttle_mask is not None]),
    )


def condition_warnings(seen: Sequence[tuple[str, Conditions | Unavailable]]) -> list[Warned]:
    """Throttling of an engine and clock drift between engines (label, conditions)."""
    warned = []
    clocks: dict[int, list[tuple[float, str]]] = {}
    known = [(label, item) for label, item in seen if isinstance(item, Conditions)]
    for label, item in [(label, one) for label, c in known for one in (c, *c.further)]:
        if item.throttle:
            alone = not any(name == label and c.further for name, c in known)
            which = "the GPU" if alone else f"GPU {item.device}"
            reasons = ", ".join(f"{name} in {share:.0%}" for name, share in item.throttle)
            warned.append(Warned(label, f"{which} throttled while decoding: {reasons} of samples"))
        if item.sm_clock_mhz:
            clocks.setdefault(item.device, []).append((item.sm_clock_mhz.median, label))
    for device, found in clocks.items():
        (slow, slow_label), (fast, fast_label) = min(found), max(found)
        if fast > slow * (1 + CLOCK_DRIFT):
            text = (
                f"SM clocks of GPU {device} drifted: {slow_label} decoded at {slow:.0f} MHz, "
                f"{fast_label} at {fast:.0f} MHz (medians)"
            )
            warned.append(Warned("run", text))
    return warned


def mean_of(values: Iterable[float | None], reason: str) -> Maybe:
    """Mean of the values that are there."""
    there = [v for v in values if v is not None]
    return mean(there) if there else Unavailable(reason)


def _span(values: Iterable[float | None]) -> Span | None:
    there = [float(v) for v in values if v is not None]
    return Span(min(there), median(there), max(there)) if there else None


def _throttle(masks: Sequence[int]) -> tuple[tuple[str, float], ...]:
    counts: dict[str, int] = {}
    for mask in masks:
        for name in throttle_names(mask):
            counts[name] = counts.get(name, 0) + 1
    shares = [(name, count / len(masks)) for name, count in counts.items()]
    return tuple(sorted(shares, key=lambda item: -item[1]))
