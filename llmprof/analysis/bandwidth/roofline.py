"""How much of the memory bandwidth does decoding use: modelled and measured, never mixed.

*Modelled*: bytes that a decode step must read × steps a second, those of ``tok_s``: whole rounds,
so that tok/s and GB/s of one row stand for the same time. The bytes are the weights at their
packed size, read once for the whole batch, and each sequence's K and V. Activations and logits are
left out: for batch-1 decoding they are some 0.1 % of the weights.
*Measured*: NVML GPM's share of cycles in which DRAM was busy × peak (Hopper and newer).
GB is 1e9 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmprof.analysis.timing.conditions import (
    gpu_index,
    mean_of,
    missing_reason,
    samples_while_decoding,
)
from llmprof.analysis.timing.steps import EngineSteps, RoundSteps, workload_number
from llmprof.records import EngineRecord, Maybe, RunData, Unavailable

GPM_PERIOD_NS = 220_000_000
"""A GPM value covers the time since the one before, with samples every 100 ms and pairs at least
110 ms apart up to 0.2 s: at the start of a decode window it still holds the prefill, or the pause
before it. On an H100 0.1 s here made 1816 GB/s of a graph engine's modelled 2114."""


@dataclass(frozen=True)
class Bandwidth:
    """One engine against the roofline."""

    bytes_per_step: Maybe
    modelled_gb_s: Maybe
    measured_gb_s: Maybe
    peak_gb_s: Maybe
    peak_source: str
    """Where the peak is from; empty without a peak."""
    modelled_share: Maybe
    """``modelled_gb_s`` / peak, 0–1."""
    measured_share: Maybe
    copy_gb_s: Maybe
    """What a device-to-device copy reached before the run, bytes read + written."""


def bandwidth(data: RunData, engine: EngineRecord, steps: EngineSteps) -> Bandwidth:
    """Bandwidth of one engine's timing pass."""
    size = bytes_per_step(data, engine, steps.rounds)
    rate = steps.tok_s.value
    if isinstance(size, Unavailable) or isinstance(rate, Unavailable):
        modelled: Maybe = size if isinstance(size, Unavailable) else rate
    else:
        modelled = size * rate / (workload_number(data, "batch") or 1) / 1e9
    peak, source = _peak(data, engine)
    busy = _dram_busy(data, engine)
    return Bandwidth(
        bytes_per_step=size,
        modelled_gb_s=modelled,
        measured_gb_s=_product(busy, peak),
        peak_gb_s=peak,
        peak_source=source,
        modelled_share=_share(modelled, peak),
        measured_share=busy,
        copy_gb_s=copy_gb_s(data, engine),
    )


def bytes_per_step(data: RunData, engine: EngineRecord, rounds: Sequence[RoundSteps]) -> Maybe:
    """Weights + K and V of every sequence at the mean context of the finished decode steps.

    Step i (from 1) attends to prompt + i positions, so N steps attend to prompt + (N + 1)/2 in
    the mean.
    """
    info = engine.info
    if info is None:
        return Unavailable(f"{engine.label} did not load")
    if data.info.opened and not info.model:
        return Unavailable("the file does not say which model ran")
    if info.weight_bytes_per_step is None:
        return Unavailable(f"{engine.label} does not know the packed size of its weights")
    if info.kv_bytes_per_token is None:
        return Unavailable(f"{engine.label} does not know the size of its KV cache")
    prompt_len, batch = workload_number(data, "prompt_len"), workload_number(data, "batch")
    if prompt_len is None or batch is None:
        return Unavailable("the file does not hold the workload")
    count = sum(r.steps for r in rounds)
    if not count:
        return Unavailable("no decode step was timed")
    positions = sum(r.steps * (prompt_len + (r.steps + 1) / 2) for r in rounds) / count
    return info.weight_bytes_per_step + info.kv_bytes_per_token * positions * batch


def _peak(data: RunData, engine: EngineRecord) -> tuple[Maybe, str]:
    """Peak GB/s of the engine's device and where it is from.

    A measured copy only stands in where NVML, which knows no CPU, has no peak.
    """
    if engine.info is None:
        return Unavailable(f"{engine.label} did not load"), ""
    index = gpu_index(engine)
    for device in data.gpu_devices:
        if device.index == index and device.peak_bandwidth_gb_s:
            return device.peak_bandwidth_gb_s, "NVML: max memory clock × bus width × 2"
    copy = copy_gb_s(data, engine)
    if not isinstance(copy, Unavailable):
        return copy, "measured: a memory copy on the spot"
    if index is None:
        return Unavailable("no peak known for a CPU; nothing reports its memory clock"), ""
    reason = (
        missing_reason(data, (f"gpu{index}",), "max_mem_clock")
        or missing_reason(data, (f"gpu{index}",), "bus_width")
        or missing_reason(data, ("run",), "nvml")
    )
    return Unavailable(reason or f"NVML did not say the memory clock of GPU {index}"), ""


def copy_gb_s(data: RunData, engine: EngineRecord) -> Maybe:
    """What a copy reached on the engine's device before the run, bytes read + written.

    From ``environment["copy_gb_s"]``: device → GB/s, or ``{"value": None, "reason": …}``."""
    copies = data.info.environment.get("copy_gb_s")
    device = engine.info.device if engine.info else ""
    found = copies.get(device) if isinstance(copies, dict) else None
    if found is None and isinstance(copies, dict):
        found = copies.get(f"cuda:{gpu_index(engine)}")  # the first of several
    if isinstance(found, (int, float)) and found > 0:
        return float(found)
    if isinstance(found, dict) and found.get("reason"):
        return Unavailable(str(found["reason"]))
    return Unavailable("no copy was measured on this device")


def _dram_busy(data: RunData, engine: EngineRecord) -> Maybe:
    """Mean GPM DRAM utilisation while the engine decoded, 0–1."""
    index = gpu_index(engine)
    if index is None:
        return Unavailable("measured by NVML GPM, which needs a GPU")
    readings = [s for s in data.gpu_samples if s.device == index and s.gpm_dram_bw_pct is not None]
    if not readings:
        reason = missing_reason(data, ("run", f"gpu{index}"), "gpm")
        return Unavailable(reason or f"no NVML GPM reading of GPU {index} (Hopper or newer)")
    rounds = data.rounds_of(engine.engine_id)
    if not rounds and data.info.source != "driven":
        no = data.why_missing("run", "timing pass")
        return Unavailable(no or "GPM readings are for timing rounds, and there are none")
    inside = samples_while_decoding(readings, rounds, index, GPM_PERIOD_NS)
    reason = "rounds decode for less than the 0.2 s that one GPM reading takes"
    return _product(mean_of((s.gpm_dram_bw_pct for s in inside), reason), 0.01)


def _product(a: Maybe, b: Maybe) -> Maybe:
    if isinstance(a, Unavailable):
        return a
    return b if isinstance(b, Unavailable) else a * b


def _share(part: Maybe, whole: Maybe) -> Maybe:
    if isinstance(part, Unavailable):
        return part
    return whole if isinstance(whole, Unavailable) else part / whole
