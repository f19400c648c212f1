"""Run data from a few numbers: pure records, no file, no engine."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from llmprof.records import (
    EngineInfo,
    EngineRecord,
    GpuDevice,
    GpuSample,
    PassName,
    RoundRecord,
    RunData,
    RunInfo,
)
from llmprof.workload import Workload, seeded_ids

MS = 1_000_000

H100 = GpuDevice(0, "NVIDIA H100", "GPU-1", bus_width_bits=5120, max_mem_clock_mhz=2619)


def workload(
    prompt_len: int = 10, decode_len: int = 4, batch: int = 1, rounds: int = 8, seed: int = 0
) -> Workload:
    ids = seeded_ids(prompt_len, 100, batch, seed)
    return Workload(ids, decode_len=decode_len, rounds=rounds, seed=seed)


def run_info(**changes: Any) -> RunInfo:
    values: dict[str, Any] = {
        "t0_ns": 0,
        "t0_utc_ns": 1_700_000_000_000_000_000,
        "tool_version": "0.1.0",
        "tool_commit": None,
        "command": ["llmprof", "--headless"],
        "workload": workload().to_dict(),
        "environment": {"cpu": "a cpu", "driver": {"unavailable": "no NVIDIA driver"}},
        "trace_level": "steps",
        "state": "finished",
    }
    return RunInfo(**{**values, **changes})


def engine(engine_id: int, label: str, *, info: EngineInfo | None = None, **rest: Any) -> Any:
    values: dict[str, Any] = {
        "state": "finished",
        "info": info or engine_info(),
        "load_ns": 1_500_000_000,
        "warmup_steps": 16,
        "warmup_stable": True,
        **rest,
    }
    return EngineRecord(engine_id, label, label.partition("#")[0], "python3", {}, **values)


def engine_info(**changes: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "versions": {"torch": "2.13.0"},
        "model": "/models/tiny.gguf",
        "model_format": "gguf Q4_1",
        "weight_bytes_per_step": 1_000_000,
        "kv_bytes_per_token": 1_000,
        "dtype": "fp32",
    }
    return EngineInfo(**{**values, **changes})


def decode_round(
    engine_id: int,
    index: int,
    steps_ms: Sequence[float] = (10, 10, 10, 10),
    *,
    start_ms: float | None = None,
    ttft_ms: float = 20,
    pass_name: PassName = "timing",
    **changes: Any,
) -> RoundRecord:
    """A round of the given step times; engines take turns when ``start_ms`` is left out."""
    start = int((index * 1000 + engine_id * 500 if start_ms is None else start_ms) * MS)
    stamps = array("q", [start + int(ttft_ms * MS)])
    for step in steps_ms:
        stamps.append(stamps[-1] + int(step * MS))
    values: dict[str, Any] = {
        "pid": 100 + engine_id,
        "tid": 100 + engine_id,
        "prefill_start_ns": start,
        "end_ns": stamps[-1],
        "complete": True,
        "tokens": [list(range(5, 6 + len(steps_ms)))],
        **changes,
    }
    round_id = index * 10 + engine_id + (5 if pass_name == "traced" else 0)
    return RoundRecord(
        round_id, engine_id, pass_name, index, start_ns=start, stamps_ns=stamps, **values
    )


def run_data(
    engines: Sequence[EngineRecord], rounds: Sequence[RoundRecord], **changes: Any
) -> RunData:
    info = changes.pop("info", None) or run_info()
    ordered = sorted(rounds, key=lambda r: r.start_ns)
    return RunData(info, list(engines), ordered, **changes)


def two_engines(factor: float = 3.0, rounds: int = 8) -> RunData:
    """``torch`` and ``llamacpp``, the second ``factor`` times faster, with shared slow drift."""
    made = []
    for index in range(rounds):
        drift = 1 + 0.05 * index
        noise = 1 + 0.002 * ((index * 7) % 5 - 2)
        made.append(decode_round(0, index, [10 * drift] * 4))
        made.append(decode_round(1, index, [10 * drift * noise / factor] * 4))
    made += [
        decode_round(i, 0, [12 / (1, factor)[i]] * 2, start_ms=20_000 + i, pass_name="traced")
        for i in (0, 1)
    ]
    return run_data([engine(0, "torch"), engine(1, "llamacpp")], made)


def gpu_sample(at_ms: float, **values: Any) -> GpuSample:
    return GpuSample(int(at_ms * MS), values.pop("device", 0), **values)
