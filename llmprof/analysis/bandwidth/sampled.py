"""Measured bandwidth of every decode step, beside the modelled one, from the sampled round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.pm_steps import misplaced, step_activity, weighted_means
from llmprof.analysis.timing.conditions import gpu_indices
from llmprof.analysis.timing.steps import workload_number
from llmprof.records import EngineRecord, Maybe, RoundRecord, RunData, Unavailable
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import pm_round


@dataclass(frozen=True)
class SampledSteps:
    """One entry a decode step; ``None`` where a step is too short for its own value.

    GB is 1e9 bytes. ``measured``: DRAM throughput by PM sampling × peak; device-wide, and of all
    GPUs together where the layers of one rank lie on several. ``modelled``: weights + KV at that
    step's context / the step's time.
    """

    interval_ns: int
    clock: str
    clock_error_ns: int | None
    dropped: int
    measured_gb_s: tuple[float | None, ...]
    modelled_gb_s: tuple[float | None, ...]
    sm_active_pct: tuple[float | None, ...]
    mean_measured_gb_s: Maybe
    """Over all decode steps together, weighted by time."""
    mean_modelled_gb_s: Maybe
    why_no_steps: str
    """Why no step has a value of its own; empty where some have."""


def no_samples(
    reader: RunFileReader, data: RunData, label: str, wanted: str = "no sampled round"
) -> Unavailable:
    """Why the counters of an engine's GPU are not in the file."""
    reason = data.why_missing(label, "pm") or data.why_missing("run", "pm")
    if reason is None and data.info.source == "recorded" and not reader.sampled_devices():
        return Unavailable(f"{wanted}: llmprof record --bandwidth samples the GPU's counters")
    return Unavailable(reason or wanted)


def sampled_steps(
    reader: RunFileReader, data: RunData, engine: EngineRecord
) -> SampledSteps | Unavailable:
    """The sampled round of one engine."""
    record = next(iter(data.rounds_of(engine.engine_id, "sampled")), None)
    if record is None:
        return no_samples(reader, data, engine.label)
    found = reader.pm_samples(record.round_id)
    if found is None:
        return no_samples(reader, data, engine.label)
    facts, samples = found
    peak = next((d.peak_bandwidth_gb_s for d in data.gpu_devices if d.index == facts.device), None)
    stamps = np.array(record.stamps_ns, np.int64)
    doubt = misplaced(
        stamps,
        record.prefill_start_ns,
        samples.start_ns,
        samples.end_ns,
        samples.sm_active_pct,
        facts.clock_error_ns or 0,
    )
    if facts.clock == "contradiction":
        doubt = doubt or "the PM samples could not be put on the run's clock"
    if doubt:
        return Unavailable(doubt)
    activity = step_activity(
        stamps,
        samples.start_ns,
        samples.end_ns,
        samples.dram_pct,
        samples.sm_active_pct,
        facts.clock_error_ns,
        peak,
    )
    whole, covered = weighted_means(
        stamps[[0, -1]], samples.start_ns, samples.end_ns, samples.dram_pct
    )
    mean: Maybe = Unavailable("the GPU's peak bandwidth is not known")
    if peak is not None:
        mean = float(whole[0] / 100 * peak) if covered[0] > 0 else Unavailable("no samples")
    steps_gb_s = activity.dram_gb_s
    for device in _further(engine):
        more = _of_device(reader, data, record, device, facts.device)
        if more is None:
            text = f"the counters of GPU {device}, which holds layers too, were not sampled"
            return Unavailable(text)
        steps_gb_s = steps_gb_s + more[0]
        mean = mean + more[1] if isinstance(mean, float) else mean
    modelled = _modelled(data, engine, record)
    sizes = [m * s for m, s in zip(modelled, np.diff(stamps).tolist(), strict=True) if m]
    return SampledSteps(
        interval_ns=facts.interval_ns,
        clock=facts.clock,
        clock_error_ns=facts.clock_error_ns,
        dropped=facts.dropped,
        measured_gb_s=_values(steps_gb_s),
        modelled_gb_s=tuple(modelled),
        sm_active_pct=_values(activity.sm_active_pct),
        mean_measured_gb_s=mean,
        mean_modelled_gb_s=(
            sum(sizes) / float(stamps[-1] - stamps[0])
            if sizes
            else Unavailable("the engine does not know the bytes it reads")
        ),
        why_no_steps="" if activity.unavailable is None else activity.unavailable.reason,
    )


def _further(engine: EngineRecord) -> list[int]:
    """GPUs beside the first that hold layers of the same rank."""
    alone = engine.info is not None and engine.info.ranks == 1
    return gpu_indices(engine)[1:] if alone else []


def _of_device(
    reader: RunFileReader, data: RunData, record: RoundRecord, device: int, primary: int
) -> tuple[NDArray[np.float64], float] | None:
    """GB/s in each step, and over all of them; ``None``: not known."""
    found = reader.pm_samples(pm_round(record.round_id, device, primary))
    peak = next((d.peak_bandwidth_gb_s for d in data.gpu_devices if d.index == device), None)
    if found is None or peak is None or found[0].clock == "contradiction":
        return None
    facts, samples = found
    stamps = np.array(record.stamps_ns, np.int64)
    times = samples.start_ns, samples.end_ns
    share = samples.dram_pct
    activity = step_activity(
        stamps, *times, share, samples.sm_active_pct, facts.clock_error_ns, peak
    )
    whole, covered = weighted_means(stamps[[0, -1]], *times, share)
    return (activity.dram_gb_s, float(whole[0] / 100 * peak)) if covered[0] > 0 else None


def _modelled(data: RunData, engine: EngineRecord, record: RoundRecord) -> list[float | None]:
    """bytes/ns = GB/s of each step; step i attends to prompt + i positions."""
    info, prompt = engine.info, workload_number(data, "prompt_len")
    batch = workload_number(data, "batch")
    if info is None or prompt is None or batch is None:
        return [None] * record.steps
    weights, kv = info.weight_bytes_per_step, info.kv_bytes_per_token
    if weights is None or kv is None:
        return [None] * record.steps
    stamps = record.stamps_ns
    return [
        (weights + kv * (prompt + i) * batch) / max(1, stamps[i] - stamps[i - 1])
        for i in range(1, record.steps + 1)
    ]


def _values(column: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(v) else float(v) for v in column)
