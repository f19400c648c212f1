"""Programs of several ranks that ``run_ranks.py`` starts: all-reduces timed on the spot, a profiled
loop; and what it plants into a rank of the torch engine.

    python3 tests/gpu/ranks_programs.py bandwidth 10240,67108864     (with torchrun's variables)
    torchrun --nproc-per-node 4 tests/gpu/ranks_programs.py recorded
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAFE = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
"""NVLink multicast stays off, here and in every process that this starts."""

PLANT = '''
"""Delays one rank of the torch engine: LLMPROF_PLANT is RANK:host or RANK:kernel."""
import importlib.util, os, sys, time

WHO, _, WHAT = os.environ.get("LLMPROF_PLANT", "").partition(":")
TARGET = "llmprof.engines.torch.loops"


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            for kind in (module.EagerLoop, module.GraphLoop):
                kind.step = delayed(kind.step)

        spec.loader.exec_module = exec_module
        return spec


def delayed(step):
    import torch

    def planted(self):
        if WHAT == "host":
            time.sleep(0.001)
        else:
            torch.cuda._sleep(1_000_000)
        return step(self)

    return planted


if WHO and os.environ.get("RANK") == WHO:
    sys.meta_path.insert(0, Finder())
'''
"""``sitecustomize.py``: a sleep of 1 ms, or a kernel of 0.5 ms, before each step."""


def kernels_of(path: Path) -> list[dict[str, Any]]:
    """NCCL's kernels in a trace of torch.profiler, in order."""
    open_file: Any = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt") as text:
        events = json.load(text)["traceEvents"]
    mine = [e for e in events if e.get("cat") == "kernel" and e["name"].startswith("nccl")]
    return sorted(mine, key=lambda e: e["ts"])


def bandwidth(rank: int, sizes: list[int]) -> None:
    """Time of one all-reduce in place, as nccl-tests: launched one after the other, the host
    synchronises once, time / count.

    A spinning kernel and one all-reduce go first, so that all launches are made before the clock
    starts: a host that takes 20 µs a launch would be measured else. (In a CUDA graph of nothing but
    all-reduces each one took 40 µs, whatever its size: NCCL's 4 kB of arguments a node.) The time
    holds the gap between two kernels; the kernel alone is torch.profiler's of the same launches.
    """
    import torch
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    def launch(buffer: Any, many: int) -> tuple[Any, Any]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(80_000_000)  # about 40 ms
        dist.all_reduce(buffer)
        begin.record()
        for _ in range(many):
            dist.all_reduce(buffer)
        end.record()
        torch.cuda.synchronize()
        return begin, end

    for size in sizes:
        buffer = torch.zeros(size // 2, dtype=torch.float16, device=f"cuda:{rank}")
        many = 400 if size < 1 << 24 else 50
        launch(buffer, 5)
        times = [
            a.elapsed_time(b) / many * 1e3 for a, b in (launch(buffer, many) for _ in range(5))
        ]
        with tempfile.TemporaryDirectory() as folder:
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                launch(buffer, 60)
            trace = Path(folder) / "trace.json"
            seen.export_chrome_trace(str(trace))
            kernels = kernels_of(trace)[-40:]
            durations = sorted(k["dur"] for k in kernels)
        found = {
            "bytes": size,
            "rank": rank,
            "us": sorted(times)[len(times) // 2],
            "kernel_us": durations[len(durations) // 2] if durations else None,
            "kernel": kernels[-1]["name"].split("(")[0] if kernels else None,
        }
        print(json.dumps(found), flush=True)


def profiled(rank: int, folder: Path) -> None:
    """A loop with all-reduces under torch.profiler, one trace a rank; rank 1 sleeps 1 ms a step."""
    import torch
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile, record_function

    device = f"cuda:{rank}"
    weight = torch.randn(4096, 4096, dtype=torch.float16, device=device) / 64
    x = torch.randn(1, 4096, dtype=torch.float16, device=device)

    def step() -> None:
        y = x
        for _ in range(16):
            y = y @ weight
            dist.all_reduce(y)
        float(y.sum().item())

    for _ in range(5):
        step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for number in range(24):
            with record_function(f"decode {number}"):
                if rank == 1:
                    time.sleep(0.001)
                step()
    seen.export_chrome_trace(str(folder / f"rank{rank}.pt.trace.json"))


def recorded(rank: int, groups: bool) -> None:
    """Steps with all-reduces of 8 kB launched one by one, then (not with groups) a graph with
    all-reduces of 10 kB: nothing but NCCL says how large they are.

    Args:
        groups: ranks 2n and 2n + 1 reduce among themselves, as copies of a model of two ranks do.
    """
    import torch
    import torch.distributed as dist

    device, mine = f"cuda:{rank}", None
    world = dist.get_world_size()
    if groups:
        made = [dist.new_group([n, n + 1]) for n in range(0, world, 2)]
        mine = made[rank // 2]
    weight = torch.randn(4096, 4096, dtype=torch.float16, device=device) / 64
    x = torch.randn(1, 4096, dtype=torch.float16, device=device)
    small = torch.zeros(5120, dtype=torch.float16, device=device)
    parts = torch.zeros(world * 8, dtype=torch.float16, device=device)

    def step() -> None:
        y = x
        for _ in range(8):
            y = y @ weight
            dist.all_reduce(y, group=mine)
        if not groups:
            dist.all_gather_into_tensor(parts, y[0, :8].contiguous())
        float(y.sum().item())

    for number in range(40):
        torch.cuda.nvtx.range_push(f"decode {number}")
        step()
        torch.cuda.nvtx.range_pop()
    if not groups:
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog asks for its events meanwhile, which another mode takes for an error.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(8):
                small.mul_(0.5)
                dist.all_reduce(small)
        for number in range(40, 80):
            torch.cuda.nvtx.range_push(f"decode {number}")
            graph.replay()
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_pop()
    torch.cuda.synchronize()
    time.sleep(1.0)  # the recorder writes what it has; teardown of NCCL has been seen to hang


def start(world: int, port: int, *arguments: str, timeout_s: float = 90) -> list[str]:
    """Run a program of this file on ``world`` ranks; the lines that they print.

    Raises:
        RuntimeError: a rank failed; the others are killed.
    """
    processes = []
    for rank in range(world):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, *arguments],
                stdout=subprocess.PIPE,
                env={**os.environ, **SAFE, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
        )
    lines: list[str] = []
    try:
        for process in processes:
            out, _ = process.communicate(timeout=timeout_s)
            lines += out.decode().splitlines()
            if process.returncode:
                raise RuntimeError(f"a rank of {arguments} ended with {process.returncode}")
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{arguments} did not end within {timeout_s:.0f} s") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return lines


def main() -> None:
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    if sys.argv[1] == "bandwidth":
        bandwidth(rank, [int(word) for word in sys.argv[2].split(",")])
    elif sys.argv[1] in ("recorded", "groups"):
        recorded(rank, sys.argv[1] == "groups")
    else:
        profiled(rank, Path(sys.argv[2]))
    sys.stdout.flush()
    torch.cuda.synchronize()
    os._exit(0)  # taking NCCL down has been seen to hang while a graph with collectives lives


if __name__ == "__main__":
    main()
