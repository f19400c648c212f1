"""Twins of two recordings of vLLM, eager and with CUDA graphs, as ``llmprof record`` leaves them.

``tests/fixtures/vllm_step.json`` holds names, launches and times of one decode step of each, of
vLLM 0.24.0 with 8 layers of 4096 on an H100. A twin is that step again and again, each a little
longer or shorter. ``write_requests`` makes requests of them, as a program sends them one by one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.analysis.device.naming.kernel_names import demangle
from llmprof.ingest.activities import base_name
from llmprof.records import EngineInfo, EngineRecord, GpuDevice, Missing, RunInfo
from llmprof.records.processes import RecordedProcess
from llmprof.runfile.schema import global_pid, global_tid, process_number
from llmprof.runfile.writing.writer import RunFileWriter

STEP_FILE = Path(__file__).resolve().parents[2] / "fixtures" / "vllm_step.json"
STEPS = 60
EARLY_NS = 100_000
"""Copies to the host so soon after a step's begin are of the token of the step before."""
TO_HOST = 2
T0 = 10**12
PID, TID = 4711, 4711
NO_TIMING = (
    "a recorded program has no untraced rounds: its rates are as traced"
    " (record --twice measures the slowdown)"
)


def write_twin(path: Path, kind: str) -> None:
    """``kind``: ``eager`` or ``graphs``."""
    step = read_step(kind)
    random = np.random.default_rng(0)
    steps, at = [], T0 + 50_000_000
    for _ in range(STEPS):
        steps.append((at, step))
        at += int(step["step_ns"] * random.uniform(1.0, 1.03))
    _write(path, kind, steps, at)


def read_step(kind: str) -> dict[str, Any]:
    step: dict[str, Any] = json.loads(STEP_FILE.read_text(encoding="utf-8"))[kind]
    return step


def write_requests(
    path: Path,
    kind: str,
    requests: int,
    decodes: int,
    pause_ns: int,
    prompt: int = 4,
    stalls: dict[tuple[int, int], int] | None = None,
) -> list[int]:
    """Requests of one prefill and some decode steps, with a pause between each two.

    Args:
        pause_ns: from the end of the work of a request to the start of the next one; 0: as long as
            between two steps.
        prompt: how many times as long as a decode step a prefill is.
        stalls: (request, decode step) → ns that the host is late behind it.

    Returns:
        Lengths of the decode steps that another one follows, ns.
    """
    step = read_step(kind)
    late = [c for c in step["copies"] if c[5] == TO_HOST and c[0] < EARLY_NS]
    usual = {**step, "copies": [c for c in step["copies"] if c not in late]}
    # The copies of its token come when the next step has begun, or behind the last one.
    begun = {**step, "copies": usual["copies"] + late}
    prefill = {**usual, "names": [f"long_{n}" if "nvjet" in n else n for n in step["names"]]}
    for name in ("kernels", "copies", "calls"):
        prefill[name] = [[at * prompt, took * prompt, *rest] for at, took, *rest in usual[name]]
    work = max(at + took for at, took, *_ in [*step["kernels"], *usual["copies"]])
    behind = [[work + 1000 + n * 2800, *c[1:]] for n, c in enumerate(late)]
    random = np.random.default_rng(1)
    steps, at, lengths = [], T0 + 50_000_000, []
    for request in range(requests):
        steps.append((at, prefill))
        at += int(step["step_ns"] * 1.1) * prompt
        for n in range(decodes):
            last = n + 1 == decodes
            here = begun if not last else {**begun, "copies": begun["copies"] + behind}
            steps.append((at, here))
            length = int(step["step_ns"] * random.uniform(1.0, 1.03))
            length += (stalls or {}).get((request, n), 0)
            if not last:
                lengths.append(length)
            at += work + pause_ns if last and pause_ns else length
    _write(path, kind, steps, at)
    return lengths


def _write(path: Path, kind: str, steps: list[tuple[int, dict[str, Any]]], at: int) -> None:
    info = RunInfo(
        T0, 0, "0.1.0", None, ["python", "record_vllm.py", kind], {}, {}, "full",
        state="finished", schedule="single", source="recorded",
    )  # fmt: skip
    process = process_number(PID, 0)
    with RunFileWriter(path, info) as writer:
        device = GpuDevice(
            0,
            "NVIDIA H100 80GB HBM3",
            uuid="GPU-0",
            bus_width_bits=5120,
            max_mem_clock_mhz=2619,
            sm_count=132,
        )
        writer.put_gpu_devices([device])
        engine = EngineRecord(
            0, "record_vllm.py", "record_vllm.py", "", {}, "finished", traced_pid=process
        )
        engine.info = EngineInfo(device="cuda:0", notes=["recorded on GPU 0"])
        writer.put_engine(engine)
        writer.put_missing([Missing("run", "timing pass", NO_TIMING)])
        for number, (begin, step) in enumerate(steps):
            _put_step(writer, step, begin, number << 12, process)
        kernels, copies, calls = (
            sum(len(step[n]) for _, step in steps) for n in ("kernels", "copies", "calls")
        )
        writer.put_process(
            RecordedProcess(
                process, 0, PID, 1, "record_vllm.py", "/usr/bin/python3.12",
                ["python", "record_vllm.py", kind], None, T0, steps[0][0], at, kernels, copies,
                calls, 0, 0, True, "libcupti.so.13 (loaded already)", devices={"0": "0"},
            )
        )  # fmt: skip


def _put_step(
    writer: RunFileWriter, step: dict[str, Any], begin: int, launch: int, process: int
) -> None:
    names: list[str] = step["names"]

    def columns(rows: list[list[Any]], *wanted: str) -> dict[str, list[Any]]:
        return dict(zip(wanted, map(list, zip(*rows, strict=True)), strict=True))

    def placed(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
        start = [begin + at for at in found.pop("at")]
        found["end"] = [s + took for s, took in zip(start, found.pop("took"), strict=True)]
        found["start"] = start
        found["correlationId"] = [launch + n for n in found["correlationId"]]
        return found

    place = ("at", "took", "streamId", "correlationId")
    kernels = placed(
        columns(
            step["kernels"], *place, "name", "gridX", "gridY", "gridZ", "blockX", "blockY",
            "blockZ", "registersPerThread", "staticSharedMemory", "dynamicSharedMemory",
            "graphNodeId", "graphId",
        )
    )  # fmt: skip
    count = len(kernels["start"])
    mangled = [names[n] for n in kernels.pop("name")]
    shown = [demangle(name) for name in mangled]
    kernels |= {
        "demangledName": [writer.string_id(name) for name in shown],
        "shortName": [writer.string_id(base_name(name)) for name in shown],
        "mangledName": [writer.string_id(name) for name in mangled],
        "graphNodeId": [number or None for number in kernels["graphNodeId"]],
    }
    zeros = ("deviceId", "localMemoryPerThread", "localMemoryTotal", "gridId")
    kernels |= {name: [0] * count for name in zeros}
    kernels |= {"contextId": [1] * count, "globalPid": [global_pid(process)] * count}
    writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", kernels)
    copies = placed(columns(step["copies"], *place, "bytes", "copyKind", "srcKind", "dstKind"))
    count = len(copies["start"])
    copies |= {"deviceId": [0] * count, "contextId": [1] * count}
    copies |= {"globalPid": [global_pid(process)] * count}
    writer.bulk("CUPTI_ACTIVITY_KIND_MEMCPY", copies)
    calls = placed(
        columns(step["calls"], "at", "took", "eventClass", "thread", "correlationId", "nameId")
    )
    count = len(calls["start"])
    threads = calls.pop("thread")
    calls["nameId"] = [writer.string_id(names[n]) for n in calls["nameId"]]
    calls |= {"globalTid": [global_tid(process, TID + n) for n in threads]}
    calls |= {"returnValue": [0] * count}
    writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", calls)
