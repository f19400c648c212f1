"""Sample runs for tests: a ``RunData`` as the session makes it, and the file made from it."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmprof.records import (
    ClockReading,
    EngineInfo,
    EngineRecord,
    GpuDevice,
    GpuSample,
    Missing,
    NvtxEvent,
    PassName,
    RoundRecord,
    RunData,
    RunInfo,
    Warned,
)
from llmprof.runfile.schema import OP_DOMAIN
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.workload import Workload

T0 = 7_000_000_000_000
"""CLOCK_MONOTONIC at the start of a sample run."""
UTC = 1_790_000_000_000_000_000


def sample_info(t0_ns: int = T0) -> RunInfo:
    return RunInfo(
        t0_ns=t0_ns,
        t0_utc_ns=UTC,
        tool_version="0.1.0",
        tool_commit=None,
        command=["llmprof", "--headless", "naïve ✓"],
        workload=Workload(((3, 4, 5),), decode_len=8, rounds=3).to_dict(),
        environment={"gpu": {"unavailable": "no GPU"}, "cores": 2},
        trace_level="kernels",
        state="finished",
        schedule="interleaved",
        message="",
    )


def sample_engine(engine_id: int, label: str, device: str = "cpu") -> EngineRecord:
    info = EngineInfo(
        versions={"torch": "2.13.0"},
        model="tiny",
        model_format="random fp16",
        parameters=1_000_000,
        bits_per_weight=16.0,
        weight_bytes_per_step=2_000_000,
        kv_bytes_per_token=512,
        device=device,
        dtype="fp16",
        warmup_min_steps=4,
        notes=["a note"],
        op_tracer="torch",
    )
    return EngineRecord(
        engine_id=engine_id,
        label=label,
        name=label.split("#")[0],
        python="/usr/bin/python3",
        options={"dtype": "fp16"},
        state="finished",
        info=info,
        pid=4000 + 10 * engine_id,
        traced_pid=4001 + 10 * engine_id,
        load_ns=1_500_000_000,
        warmup_steps=64,
        warmup_stable=True,
        text="once upon a time",
    )


def sample_round(
    round_id: int,
    engine: EngineRecord,
    start_ns: int,
    *,
    pass_name: PassName = "timing",
    index: int = 1,
    step_ns: Sequence[int] = (1_000_000,) * 8,
    prefill_ns: int = 5_000_000,
) -> RoundRecord:
    """A complete round: ``prefill_ns``, then one decode step for each of ``step_ns``."""
    pid = (engine.pid if pass_name == "timing" else engine.traced_pid) or 1
    stamps = array("q", [start_ns + 1000 + prefill_ns])
    for ns in step_ns:
        stamps.append(stamps[-1] + ns)
    return RoundRecord(
        round_id=round_id,
        engine_id=engine.engine_id,
        pass_name=pass_name,
        index=index,
        pid=pid,
        tid=pid,
        start_ns=start_ns,
        prefill_start_ns=start_ns + 1000,
        stamps_ns=stamps,
        end_ns=stamps[-1] + 500,
        complete=True,
        tokens=[[7 + i for i in range(len(stamps))]],
    )


def sample_run(
    labels: Sequence[str] = ("torch", "llamacpp"),
    *,
    rounds: int = 3,
    steps: int = 8,
    gpu: bool = True,
    seed: int = 0,
) -> RunData:
    """Interleaved timing rounds (about 1 ms a step, engine k slower by k + 1), a traced round each.

    Times are absolute (``origin_ns`` is ``T0``), as in a running session.
    """
    source = random.Random(seed)
    device = "cuda:0" if gpu else "cpu"
    engines = [sample_engine(i, label, device) for i, label in enumerate(labels)]
    data = RunData(sample_info(), engines, origin_ns=T0)
    now = T0 + 1_000_000
    plan: list[tuple[PassName, int]] = [("timing", i) for i in range(1, rounds + 1)]
    for pass_name, index in [*plan, ("traced", 1)]:
        for engine in engines:
            slow = (engine.engine_id + 1) * (1.25 if pass_name == "traced" else 1.0)
            laps = [round(slow * source.uniform(0.95e6, 1.05e6)) for _ in range(steps)]
            record = sample_round(
                len(data.rounds) + 1, engine, now, pass_name=pass_name, index=index, step_ns=laps
            )
            data.rounds.append(record)
            now = record.end_ns + 2_000_000
    data.missing.append(Missing("run", "gpm", "needs Hopper"))
    data.warnings.append(Warned(labels[0], "clock drifted by 4 %"))
    data.clocks.append(ClockReading(0, 1, "start", T0 + 5, UTC + 5, None, 120))
    data.logs[labels[0]] = "loading…\ndone\n"
    if gpu:
        data.gpu_devices.append(
            GpuDevice(
                index=0,
                name="NVIDIA H100 80GB HBM3",
                uuid="GPU-5f0c6a43-0000-0000-0000-000000000000",
                pci_bus_id="00000000:01:00.0",
                memory_total_mib=81559.0,
                bus_width_bits=5120,
                max_sm_clock_mhz=1980,
                max_mem_clock_mhz=2619,
                power_limit_w=700.0,
                sm_count=132,
                compute_capability=(9, 0),
            )
        )
        data.gpu_samples += [
            GpuSample(
                T0 + i * 20_000_000,
                0,
                sm_clock_mhz=1980 - i,
                power_w=345.5 + i,
                throttle_mask=4,
                gpm_dram_bw_pct=61.7 if i % 5 == 0 else None,
            )
            for i in range(10)
        ]
    return data


def sample_operators(record: RoundRecord) -> list[NvtxEvent]:
    """In each decode step one ``aten::linear`` with ``aten::addmm`` in its middle.

    Apart by an eighth of a step: the push/pop trace of nsys 2022.4 nests by 32-bit floats.
    """
    events = []
    for start, end in zip(record.stamps_ns, record.stamps_ns[1:], strict=False):
        gap = (end - start) // 8
        for name, first, last in (
            ("aten::linear", start + gap, end - gap),
            ("aten::addmm", start + 2 * gap, end - 2 * gap),
        ):
            events.append(NvtxEvent(first, last, name, record.pid, record.tid, OP_DOMAIN))
    return events


def write_run(path: Path, data: RunData, operators: Sequence[NvtxEvent] = ()) -> Path:
    """A run file with all of ``data``, written by the calls that a session makes."""
    with RunFileWriter(path, replace(data.info, state="running")) as writer:
        for engine in data.engines:
            writer.put_engine(replace(engine, state="loading", info=None))
        if data.gpu_devices:
            writer.put_gpu_devices(data.gpu_devices)
        for engine in data.engines:
            writer.put_engine(engine)
        for record in data.rounds:
            writer.put_round(record)
        writer.put_nvtx(operators)
        writer.put_gpu_samples(data.gpu_samples)
        writer.put_missing(data.missing)
        for warning in data.warnings:
            writer.put_warning(warning)
        for clock in data.clocks:
            writer.put_clock(clock)
        for label, text in data.logs.items():
            writer.put_log(label, text)
        writer.set_state(data.info.state, data.info.message)
    return path


def as_read(data: RunData, path: Path) -> RunData:
    """``data`` as the reader gives it: times since ``info.t0_ns``."""
    t0 = data.info.t0_ns
    return replace(
        data,
        rounds=[
            replace(
                r,
                start_ns=r.start_ns - t0,
                prefill_start_ns=r.prefill_start_ns - t0,
                end_ns=r.end_ns - t0,
                stamps_ns=array("q", [s - t0 for s in r.stamps_ns]),
            )
            for r in sorted(data.rounds, key=lambda r: (r.start_ns, r.round_id))
        ],
        gpu_samples=[replace(s, timestamp_ns=s.timestamp_ns - t0) for s in data.gpu_samples],
        clocks=[replace(c, monotonic_ns=c.monotonic_ns - t0) for c in data.clocks],
        path=str(path),
        origin_ns=0,
    )
