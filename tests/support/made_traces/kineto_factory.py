"""Small traces as torch.profiler writes them, with what is in them known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

BASE_US = 4_203_669_603_000.0
BASE_NS = 1_735_632_360_000_000_000


def event(cat: str, name: str, ts: float, dur: float, pid: Any, tid: Any, **args: Any) -> dict:
    return {
        "ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur,
        "args": args,
    }  # fmt: skip


def step(
    number: int, at: float, kernels: int = 3, *, amd: bool = False, graph: bool = False
) -> list:
    """One decode step of 1000 µs: a range, operators, launches, kernels of 10.5 µs each."""
    begin, found, first = BASE_US + at, [], 1000 * number + 1
    host, gpu, stream = 77, 2 if amd else 0, 0 if amd else 7
    found.append(event("user_annotation", f"decode {number}", begin, 900.0, host, host))
    api = "hip" if amd else "cuda"
    if graph:
        found.append(event("cuda_runtime", f"{api}GraphLaunch", begin + 5, 20.0, host, host,
                           correlation=first))  # fmt: skip
    for i in range(kernels):
        correlation = first if graph else first + i
        if not graph:
            found.append(event("cpu_op", "aten::mm", begin + 20 * i + 1, 15.0, host, host))
            found.append(event("cuda_runtime", f"{api}LaunchKernel", begin + 20 * i + 5, 5.0, host,
                               host, correlation=correlation))  # fmt: skip
        values: dict[str, Any] = {"device": gpu, "stream": stream, "correlation": correlation}
        if not amd:
            values |= {"context": 1, "grid": [8, 1, 1], "block": [128, 1, 1],
                       "registers per thread": 32, "shared memory": 1024}  # fmt: skip
        name = ("ampere_sgemm_128x64_nn", "flash_fwd_kernel", "my_own_thing")[i % 3]
        found.append(event("kernel", name, begin + 50 + 20 * i, 10.5, gpu, stream, **values))
    found.append(event("gpu_user_annotation", f"decode {number}", begin + 50, 20.0 * kernels, gpu,
                       stream))  # fmt: skip
    return found


def document(events: list, **more: Any) -> dict:
    """The frame around events, as of 2025."""
    labels = [
        {"ph": "M", "name": "process_name", "pid": 77, "tid": 0, "args": {"name": "python3"}},
        {"ph": "M", "name": "process_labels", "pid": 77, "tid": 0, "args": {"labels": "CPU"}},
    ]
    return {
        "schemaVersion": 1,
        "deviceProperties": [
            {"id": 0, "name": "NVIDIA H100 80GB HBM3", "totalGlobalMem": 85018279936,
             "computeMajor": 9, "computeMinor": 0, "warpSize": 32, "numSms": 132}
        ],
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": BASE_NS,
        **more,
        "traceEvents": [*labels, *events],
        "traceName": "/tmp/x.json",
    }  # fmt: skip


def steps(count: int = 6, **options: Any) -> list:
    return [e for n in range(count) for e in step(n, 1000.0 * n, **options)]


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path
