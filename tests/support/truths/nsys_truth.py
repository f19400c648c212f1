"""A full trace in a run file, and what every reader of nsys exports must find in it.

Everything is drawn from a seeded generator; the truth is computed from the drawn rows with plain
Python, never from the file.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from runfile_factory import T0, sample_run

from llmprof.records import PmRound, RoundRecord, RunData
from llmprof.runfile.schema import global_pid, global_tid
from llmprof.runfile.writing.writer import RunFileWriter

COPIES = {1: "Host-to-Device", 2: "Device-to-Host", 8: "Device-to-Device"}
KERNELS = [
    "void gemm_half_q_half_gptq_kernel<(bool)1, (int)4>(const __half *)",
    "void flash::flash_fwd_splitkv_kernel<Traits<128>>(flash::Flash_fwd_params)",
    "rms_norm_kernel(const __half *, __half *)",
]
LAUNCH, COPY_CALL, SET_CALL, SYNC = (
    "cudaLaunchKernel_v7000",
    "cudaMemcpyAsync_v3020",
    "cudaMemsetAsync_v3020",
    "cudaStreamSynchronize_v3020",
)


@dataclass(frozen=True)
class Event:
    """One row. Times absolute, ns."""

    start: int
    end: int
    name: str
    pid: int
    correlation: int
    inside: str
    """The NVTX range around its launch, as nsys prints it."""
    bytes: int = 0
    kind: int = 0

    @property
    def ns(self) -> int:
        return self.end - self.start


@dataclass
class Truth:
    """What was written."""

    data: RunData
    kernels: list[Event] = field(default_factory=list)
    copies: list[Event] = field(default_factory=list)
    sets: list[Event] = field(default_factory=list)
    calls: list[Event] = field(default_factory=list)
    metrics: int = 0
    """Rows of GPU_METRICS."""

    def sums(self, events: list[Event]) -> dict[str, tuple[int, int]]:
        """Name → (count, total ns)."""
        found: dict[str, list[int]] = defaultdict(list)
        for event in events:
            found[event.name].append(event.ns)
        return {name: (len(ns), sum(ns)) for name, ns in found.items()}

    def ranges(self) -> dict[str, tuple[int, int]]:
        """NVTX range → (count, total ns), from the rounds' stamps alone."""
        found: dict[str, list[int]] = defaultdict(list)
        for r in self.data.rounds:
            suffix = " traced" if r.pass_name == "traced" else ""
            found[f"llmprof:round {r.index}{suffix}"].append(r.end_ns - r.start_ns)
            found["llmprof:prefill"].append(r.stamps_ns[0] - r.prefill_start_ns)
            for i in range(1, len(r.stamps_ns)):
                found[f"llmprof:decode {i}"].append(r.stamps_ns[i] - r.stamps_ns[i - 1])
        return {name: (len(ns), sum(ns)) for name, ns in found.items()}


def make(file: Path, per_step: int = 12, steps: int = 8) -> Truth:
    """Two engines, timing and traced rounds, and in each traced step kernels on two streams, a
    copy, a set and a wait, each with the call that launched it."""
    truth = Truth(sample_run(["torch", "llamacpp"], rounds=2, steps=steps))
    source = random.Random(7)
    streams: list[int] = []
    for record in truth.data.rounds:
        if record.pass_name == "traced":
            _fill(truth, record, per_step, source, streams)
    _write(file, truth, streams)
    return truth


def _fill(
    truth: Truth, record: RoundRecord, per_step: int, source: random.Random, streams: list[int]
) -> None:
    borders = [record.prefill_start_ns, *record.stamps_ns]
    for step in range(len(borders) - 1):
        begin, end = borders[step], borders[step + 1]
        inside = "llmprof:prefill" if step == 0 else f"llmprof:decode {step}"
        slot = (end - begin) // (per_step + 4)
        for nth in range(per_step + 3):
            correlation = len(truth.calls) + 1
            call = begin + nth * slot + slot // 8
            took = slot // 16 + source.randrange(50)
            work = call + slot // 4 + source.randrange(40)
            length = slot // 3 + source.randrange(100)
            row = (work, work + length)
            common = (record.pid, correlation, inside)
            if nth < per_step:
                name = KERNELS[nth % len(KERNELS)]
                truth.kernels.append(Event(*row, name, *common))
                streams.append(7 + nth % 2)
                called = LAUNCH
            elif nth == per_step:
                kind = source.choice(list(COPIES))
                size = source.randrange(1, 1 << 20)
                truth.copies.append(Event(*row, COPIES[kind], *common, bytes=size, kind=kind))
                called = COPY_CALL
            elif nth == per_step + 1:
                size = source.randrange(1, 4096)
                truth.sets.append(Event(*row, "memset", *common, bytes=size))
                called = SET_CALL
            else:
                called, took = SYNC, slot // 2
            truth.calls.append(Event(call, call + took, called, *common))


def _write(file: Path, truth: Truth, streams: list[int]) -> None:
    data = truth.data
    with RunFileWriter(file, data.info) as writer:
        writer.put_gpu_devices(data.gpu_devices)
        for engine in data.engines:
            writer.put_engine(engine)
        for record in data.rounds:
            writer.put_round(record)
        writer.put_gpu_samples(data.gpu_samples)
        writer.put_missing(data.missing)
        for warning in data.warnings:
            writer.put_warning(warning)
        _write_pm(writer, data)
        ids = {name: writer.string_id(name) for name in [*KERNELS, LAUNCH, COPY_CALL, SET_CALL]}
        ids[SYNC] = writer.string_id(SYNC)

        def columns(events: list[Event]) -> dict[str, list[int]]:
            return {
                "start": [e.start for e in events],
                "end": [e.end for e in events],
                "deviceId": [0] * len(events),
                "contextId": [1] * len(events),
                "streamId": [7] * len(events),
                "correlationId": [e.correlation for e in events],
                "globalPid": [global_pid(e.pid) for e in events],
            }

        kernels, names = columns(truth.kernels), [ids[e.name] for e in truth.kernels]
        for column in (
            "registersPerThread", "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ",
            "staticSharedMemory", "dynamicSharedMemory", "localMemoryPerThread",
            "localMemoryTotal", "gridId",
        ):  # fmt: skip
            kernels[column] = [1] * len(names)
        kernels |= {"streamId": streams, "demangledName": names, "shortName": names}
        writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", kernels)
        copies = columns(truth.copies)
        copies |= {
            "bytes": [e.bytes for e in truth.copies],
            "copyKind": [e.kind for e in truth.copies],
            "srcKind": [0 if e.kind == 1 else 2 for e in truth.copies],
            "dstKind": [0 if e.kind == 2 else 2 for e in truth.copies],
        }
        writer.bulk("CUPTI_ACTIVITY_KIND_MEMCPY", copies)
        sets = columns(truth.sets)
        sets |= {"bytes": [e.bytes for e in truth.sets], "value": [0] * len(truth.sets)}
        sets["memKind"] = [2] * len(truth.sets)
        writer.bulk("CUPTI_ACTIVITY_KIND_MEMSET", sets)
        writer.bulk(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            {
                "start": [e.start for e in truth.calls],
                "end": [e.end for e in truth.calls],
                "eventClass": [0] * len(truth.calls),
                "globalTid": [global_tid(e.pid, e.pid) for e in truth.calls],
                "correlationId": [e.correlation for e in truth.calls],
                "nameId": [ids[e.name] for e in truth.calls],
                "returnValue": [0] * len(truth.calls),
            },
        )
        writer.set_state("finished")
    given = [
        [s.sm_clock_mhz, s.power_w, s.throttle_mask, s.gpm_dram_bw_pct] for s in data.gpu_samples
    ]
    truth.metrics = sum(v is not None for row in given for v in row) + PM_VALUES


PM_VALUES = 3 * 40 - 1


def _write_pm(writer: RunFileWriter, data: RunData) -> None:
    record = data.rounds[0]
    start = [record.start_ns + 200_000 * i for i in range(40)]
    dram = [50.0 + i for i in range(39)] + [float("nan")]
    assert start[0] >= T0
    writer.put_pm_round(
        PmRound(record.round_id, 0, 200_000, "markers", 1000, 0, False),
        {
            "start": start,
            "end": [s + 200_000 for s in start],
            "dram_pct": dram,
            "dram_read_pct": [20.0] * 40,
            "sm_active_pct": [30.0] * 40,
        },
    )
