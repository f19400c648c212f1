"""``nsys stats`` reads a run file as it is, and its numbers are the stamps' own.

The exit code says nothing: nsys ends with 0 after an internal error or a skipped report too.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from runfile_factory import T0, sample_operators, sample_run, write_run

from llmprof.records import RunData
from llmprof.runfile.schema import global_pid, global_tid
from llmprof.runfile.writer import RunFileWriter

NSYS = shutil.which("nsys")
pytestmark = pytest.mark.skipif(NSYS is None, reason="nsys is not installed")

# Report names of nsys 2022.4 and of 2023.4 and later.
NAMES = {
    "nvtxsum": "nvtx_sum",
    "nvtxppsum": "nvtx_pushpop_sum",
    "nvtxpptrace": "nvtx_pushpop_trace",
    "gpukernsum": "cuda_gpu_kern_sum",
    "cudaapisum": "cuda_api_sum",
}


def old_names() -> bool:
    done = subprocess.run([str(NSYS), "--version"], capture_output=True, text=True, timeout=60)
    return " 2022." in done.stdout


def stats(report: str, file: Path) -> list[dict[str, str]]:
    """Rows of one report; fails with nsys' own words if there are none."""
    name = report if old_names() else NAMES[report]
    command = f"timeout -s KILL 120 {NSYS} stats -q -r {name} -f csv -o -".split()
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    rows = list(csv.DictReader(io.StringIO(done.stdout.strip() + "\n")))
    assert rows, f"{name}: {done.stdout}{done.stderr}"
    return rows


def truth(data: RunData) -> dict[str, list[int]]:
    """Range name → durations, from the rounds' stamps and the operators alone."""
    found: dict[str, list[int]] = defaultdict(list)
    for r in data.rounds:
        suffix = " traced" if r.pass_name == "traced" else ""
        found[f"llmprof:round {r.index}{suffix}"].append(r.end_ns - r.start_ns)
        found["llmprof:prefill"].append(r.stamps_ns[0] - r.prefill_start_ns)
        for i in range(1, len(r.stamps_ns)):
            found[f"llmprof:decode {i}"].append(r.stamps_ns[i] - r.stamps_ns[i - 1])
        if r.pass_name == "traced":
            for op in sample_operators(r):
                found[f"torch:{op.text}"].append(op.end_ns - op.start_ns)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunData]:
    data = sample_run(["torch", "llamacpp", "torch#2"], rounds=4, steps=16)
    ops = [e for r in data.rounds if r.pass_name == "traced" for e in sample_operators(r)]
    return write_run(tmp_path_factory.mktemp("nsys") / "run.sqlite", data, ops), data


@pytest.mark.parametrize("report", ["nvtxsum", "nvtxppsum"])
def test_sums_of_ranges(run: tuple[Path, RunData], report: str) -> None:
    file, data = run
    got = {
        r["Range"].lstrip(":"): (int(r["Instances"]), int(r["Total Time (ns)"]))
        for r in stats(report, file)
    }
    assert got == {name: (len(ns), sum(ns)) for name, ns in truth(data).items()}


def test_nesting_of_ranges(run: tuple[Path, RunData]) -> None:
    """Every part lies in its round, and every operator in its decode step."""
    file, data = run
    levels = defaultdict(set)
    children: dict[str, int] = defaultdict(int)
    for row in stats("nvtxpptrace", file):
        name = row["Name"].lstrip(":")
        levels[name.split()[0]].add(int(row["Lvl"]))
        children[name.split()[0]] += int(row["NumChild"] or 0)
    assert levels == {
        "llmprof:round": {0},
        "llmprof:prefill": {1},
        "llmprof:decode": {1},
        "torch:aten::linear": {2},
        "torch:aten::addmm": {3},
    }
    assert children["llmprof:round"] == sum(1 + r.steps for r in data.rounds)


def test_kernels_and_api_calls(tmp_path: Path) -> None:
    """What a later tracer writes with ``bulk`` is read too."""
    data = sample_run(["torch"])
    file = tmp_path / "run.sqlite"
    pid = data.rounds[-1].pid
    kernels, calls = range(1000), range(0, 1000, 2)
    shape = [
        "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "gridId", "deviceId",
        "contextId", "streamId", "staticSharedMemory", "dynamicSharedMemory",
        "localMemoryPerThread", "localMemoryTotal", "registersPerThread",
    ]  # fmt: skip
    with RunFileWriter(file, data.info) as writer:
        names = [writer.string_id(f"kernel<{i}>(float*)") for i in range(3)]
        launch = writer.string_id("cudaLaunchKernel_v7000")
        name_ids = [names[i % 3] for i in kernels]
        writer.bulk(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            {
                "start": [T0 + 1000 * i for i in kernels],
                "end": [T0 + 1000 * i + 100 + i for i in kernels],
                "correlationId": list(kernels),
                "globalPid": [global_pid(pid)] * len(kernels),
                "demangledName": name_ids,
                "shortName": name_ids,
                **{column: [1] * len(kernels) for column in shape},
            },
        )
        writer.bulk(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            {
                "start": [T0 + 1000 * i for i in calls],
                "end": [T0 + 1000 * i + 50 for i in calls],
                "eventClass": [0] * len(calls),
                "globalTid": [global_tid(pid, pid)] * len(calls),
                "correlationId": list(calls),
                "nameId": [launch] * len(calls),
                "returnValue": [0] * len(calls),
            },
        )
    kernel_rows = {r["Name"]: r for r in stats("gpukernsum", file)}
    got = {n: (int(r["Instances"]), int(r["Total Time (ns)"])) for n, r in kernel_rows.items()}
    assert got == {
        f"kernel<{k}>(float*)": (len(kernels[k::3]), sum(100 + i for i in kernels[k::3]))
        for k in range(3)
    }
    (call,) = stats("cudaapisum", file)
    assert (call["Name"], int(call["Num Calls"])) == ("cudaLaunchKernel", len(calls))
    assert int(call["Total Time (ns)"]) == 50 * len(calls)
