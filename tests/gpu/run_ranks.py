"""Tensor parallel torch on 2 or 4 GPUs: rates, exposed communication, bus bandwidth, who is late.

    python3 tests/gpu/run_ranks.py [--ranks 2] [--model llama2-13b] [--plant-model llama2-7b]

Needs llmprof importable and torch with NCCL. Prints markdown; exits 1 where a claim fails. About
4 minutes on two H100s. NVLink multicast stays off, here and in every process that this starts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SAFE = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
failures: list[str] = []
begun = time.monotonic()


def check(good: bool, text: str) -> None:
    print(f"- {'ok' if good else '**FAILED**'}: {text}", flush=True)
    if not good:
        failures.append(text)


def heading(text: str) -> None:
    print(f"\n## {text} ({time.monotonic() - begun:.0f} s)\n", flush=True)


def llmprof(arguments: list[str], variables: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON document of one run."""
    command = [sys.executable, "-m", "llmprof", "--headless", "--json", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **SAFE, **(variables or {})},
        timeout=280,
        check=False,
    )
    if not done.stdout:
        print(done.stderr.decode(errors="replace")[-3000:])
        raise SystemExit(f"llmprof gave nothing: {' '.join(arguments)}")
    document: dict[str, Any] = json.loads(done.stdout)
    for engine in document["engines"]:
        if engine["failure"]:
            print("failure:", engine["failure"])
    return document


def ranks(document: dict[str, Any], label: str) -> dict[str, Any]:
    found = [group for group in document["ranks"] or [] if group["engine"] == label]
    if not found:
        print("no group:", document.get("ranks_missing"), document.get("ranks_reason"))
        print("unavailable:", document["unavailable"])
        raise SystemExit(f"no ranks of {label}")
    return found[0]


def show(group: dict[str, Any]) -> None:
    print(f"verdict: {group['words']}  \nclocks: {group['clocks']['words']}  ")
    for note in group["notes"]:
        print(f"note: {note}  ")
    print("\n| rank | wait | transfer | exposed | compute | idle | makes wait | critical |")
    print("|---|---|---|---|---|---|---|---|")
    for line in group["ranks"]:
        cells = (
            line[k]
            for k in ("wait_ms", "transfer_ms", "exposed_ms", "compute_ms", "idle_ms", "late_ms")
        )
        row = " | ".join(f"{value:.3f}" for value in cells)
        print(f"| {line['name']} | {row} | {line['late_steps']}/{group['steps']} |")
    print("\n| collective | a step | transfer µs | wait µs | bytes | alg GB/s | bus GB/s |")
    print("|---|---|---|---|---|---|---|")
    for one in group["collectives"]:
        rates = [one[k] for k in ("algorithm_gb_s", "bus_gb_s")]
        shown = " | ".join("n/a" if v is None else f"{v:.3f}" for v in rates)
        print(
            f"| {one['name']} | {one['per_step']:.1f} | {one['transfer_us']:.2f}"
            f" | {one['wait_us']:.2f} | {one['bytes']} | {shown} |"
        )


# -- what one rank of this script's own programs does ------------------------------------------


def bandwidth_rank(rank: int, world: int, sizes: list[int]) -> None:
    """nccl-tests' formula: time of an all-reduce in place, bytes / time, times 2 (n - 1) / n."""
    import torch
    import torch.distributed as dist

    graphs = []
    for size in sizes:
        buffer = torch.zeros(size // 2, dtype=torch.float16, device=f"cuda:{rank}")
        many = 200 if size < 1 << 20 else 20
        for _ in range(5):
            dist.all_reduce(buffer)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(many):
                dist.all_reduce(buffer)
        best = float("inf")
        for _ in range(5):
            dist.barrier()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / many * 1e3)
        graphs.append(graph)
        if rank == 0:
            rate = size / best / 1e3
            print(
                json.dumps({"bytes": size, "us": best, "bus_gb_s": rate * 2 * (world - 1) / world})
            )


def profiled_rank(rank: int, folder: Path) -> None:
    """A loop with all-reduces under torch.profiler, one trace a rank."""
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
        for number in range(12):
            with record_function(f"decode {number}"):
                if rank == 1:
                    time.sleep(0.001)
                step()
    seen.export_chrome_trace(str(folder / f"rank{rank}.pt.trace.json"))


def child() -> None:
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    if sys.argv[2] == "bandwidth":
        bandwidth_rank(rank, world, [int(word) for word in sys.argv[3].split(",")])
    else:
        profiled_rank(rank, Path(sys.argv[3]))
    sys.stdout.flush()
    torch.cuda.synchronize()
    os._exit(0)  # taking NCCL down has been seen to hang while a graph with collectives lives


def start(world: int, port: int, *arguments: str) -> list[str]:
    """Run this script's own ranks; lines that they print."""
    processes = []
    for rank in range(world):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, "--child", *arguments],
                stdout=subprocess.PIPE,
                env={**os.environ, **SAFE, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
        )
    lines: list[str] = []
    try:
        for process in processes:
            out, _ = process.communicate(timeout=90)
            lines += out.decode().splitlines()
            if process.returncode:
                raise SystemExit(f"a rank of {arguments} ended with {process.returncode}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return lines


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


def measured(world: int, sizes: list[int]) -> dict[int, dict[str, float]]:
    heading("All-reduce on the spot, by nccl-tests' formula")
    rows = [
        json.loads(line) for line in start(world, 29611, "bandwidth", ",".join(map(str, sizes)))
    ]
    print("| bytes | µs | bus GB/s |\n|---|---|---|")
    for row in rows:
        print(f"| {row['bytes']} | {row['us']:.2f} | {row['bus_gb_s']:.3f} |")
    return {row["bytes"]: row for row in rows}


def rates(world: int, model: str, steps: str) -> dict[str, Any]:
    heading(f"torch, {model} shape, tp 1 to {world}, CUDA graphs")
    counts = [n for n in (1, 2, 4, 8) if n <= world]
    engines = []
    for n in counts:
        engines += ["--engine", f"torch:label=tp{n},tp={n},cuda_graph=1"]
    document = llmprof(
        [
            *engines, "--model", model, "--prompt-len", "64", "--decode-len", steps,
            "--traced-steps", steps, "--rounds", "6", "--trace", "full", "--no-host",
            "--bandwidth", "off",
        ]
    )  # fmt: skip
    print("| engine | tok/s | slowdown traced | J/token |\n|---|---|---|---|")
    speed = {}
    for engine in document["engines"]:
        speed[engine["label"]] = (engine["tok_s"] or {}).get("median") or 0.0
        print(
            f"| {engine['label']} | {speed[engine['label']]:.2f}"
            f" | {engine['tracing']['slowdown']} | {engine['j_per_token']} |"
        )
    check(speed[f"tp{world}"] > speed["tp1"], f"tp{world} is faster than tp1")
    for fall in document["waterfalls"]:
        for basis in ("traced", "timing"):
            one = fall[basis]
            if one is None:
                check(False, f"waterfall {fall['b']} {basis}: {fall[f'{basis}_reason']}")
                continue
            print(f"\n{fall['a']} → {fall['b']}, {basis}: {one['words']}\n")
            print("| category | a ms | b ms |\n|---|---|---|")
            for part in one["parts"]:
                print(
                    f"| {part['category']} | {part['a_ns'] / 1e6:.3f} | {part['b_ns'] / 1e6:.3f} |"
                )
            check(sum(p["b_ns"] for p in one["parts"]) == one["b_ns"], "parts add up to the step")
            names = {p["category"] for p in one["parts"]}
            both = {"communication: wait", "communication: transfer"}
            check(both <= names, "communication is wait and transfer")
    for n in counts[1:]:
        print(f"\n### tp{n}\n")
        group = ranks(document, f"tp{n}")
        show(group)
        check(group["verdict"] == "balanced", f"tp{n} without a plant is balanced")
        check(len(group["ranks"]) == n, f"{n} ranks are in the run")
        worst = max(clock["residual_ns"] for clock in group["clocks"]["ranks"])
        check(worst <= 2_000, f"ends agree within {worst} ns")
        check(all(line["unmatched"] == 0 for line in group["ranks"]), "every collective is matched")
    first, *others = [(engine["tokens"] or [[]])[0] for engine in document["engines"]]
    same = [sum(a == b for a, b in zip(first, row, strict=False)) for row in others]
    print(f"\nequal greedy tokens of {len(first)}, against tp1 (sums in another order): {same}")
    return document


def plants(world: int, model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(PLANT)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        for what, why in (("host", "host"), ("kernel", "kernels")):
            late = world - 1
            heading(f"Planted on rank {late}: {what}, {model}, {world} ranks")
            document = llmprof(
                [
                    "--engine", f"torch:label=torch,tp={world},cuda_graph=1", "--model", model,
                    "--prompt-len", "64", "--decode-len", "32", "--traced-steps", "32",
                    "--rounds", "1", "--trace", "full", "--no-host", "--bandwidth", "off",
                ],
                {"LLMPROF_PLANT": f"{late}:{what}", "PYTHONPATH": path},
            )  # fmt: skip
            group = ranks(document, "torch")
            show(group)
            reason = group["reason"] or {}
            check(reason.get("rank") == late, f"rank {late} is named: {group['words']}")
            check(reason.get("why") == why, f"the reason is {why}: {reason.get('why')}")
            if what == "kernel":
                named = str(reason.get("kernel"))
                check("spin" in named, f"the kernel is named: {named}")


def same_totals(world: int) -> None:
    heading("NCCL totals against torch.profiler's own files")
    with tempfile.TemporaryDirectory() as folder:
        start(world, 29613, "profiled", folder)
        files = sorted(Path(folder).glob("*.json"))
        true_count, true_us = {}, {}
        for rank, file in enumerate(files):
            open_file = gzip.open if file.suffix == ".gz" else open
            with open_file(file, "rt") as text:  # type: ignore[operator]
                events = json.load(text)["traceEvents"]
            mine = [e for e in events if e.get("cat") == "kernel" and e["name"].startswith("nccl")]
            true_count[rank] = len(mine)
            true_us[rank] = sum(e["dur"] for e in mine)
        out = Path(folder) / "csv"
        command = [sys.executable, "-m", "llmprof", "export", *map(str, files), "--to", "json"]
        done = subprocess.run(
            [*command, "-o", str(out) + ".json", "--step-range", "decode *"],
            cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "XDG_CACHE_HOME": folder},
            timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            check(False, f"export: {done.stderr.decode(errors='replace')[-500:]}")
            return
        document = json.loads(Path(str(out) + ".json").read_text())
        if not document.get("ranks"):
            missing = document.get("ranks_missing"), document.get("warnings")
            check(False, f"the ranks' files are no group: {missing}")
            return
        group = document["ranks"][0]
        show(group)
        for line in group["ranks"]:
            ours = (line["wait_ms"] + line["transfer_ms"]) * group["steps"] * 1e3
            true = true_us[line["rank"]]
            # All collectives of the file are in its steps but those before the first bound.
            check(
                abs(ours - true) <= 0.02 * true,
                f"rank {line['rank']}: {ours:.1f} µs here, {true:.1f} µs in the file"
                f" ({true_count[line['rank']]} kernels)",
            )
        check((group["reason"] or {}).get("rank") == 1, f"rank 1 is late: {group['words']}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="llama2-13b")
    parser.add_argument("--plant-model", default="llama2-7b")
    parser.add_argument("--steps", default="48")
    parser.add_argument("--skip", default="", help="of: bandwidth, rates, plants, profiler")
    given = parser.parse_args()
    os.environ.update(SAFE)
    skipped = given.skip.split(",")
    from llmprof.models.presets import PRESETS

    hidden = PRESETS[given.model].hidden_size
    spot: dict[int, dict[str, float]] = {}
    if "bandwidth" not in skipped:
        spot = measured(given.ranks, [2 * hidden, 1 << 20, 64 << 20])
    if "rates" not in skipped:
        document = rates(given.ranks, given.model, given.steps)
        group = ranks(document, f"tp{given.ranks}")
        line = next(one for one in group["collectives"] if one["kind"] == "AllReduce")
        check(line["bytes"] == 2 * hidden, f"bytes of an all-reduce: {line['bytes']}")
        if spot:
            near = spot[2 * hidden]["bus_gb_s"]
            seen = line["bus_gb_s"] or 0.0
            check(
                0.5 * near <= seen <= 2.0 * near,
                f"bus bandwidth {seen:.3f} GB/s in the step, {near:.3f} GB/s on the spot",
            )
    if "profiler" not in skipped:
        same_totals(given.ranks)
    if "plants" not in skipped:
        plants(given.ranks, given.plant_model)
    heading("Result")
    print(f"{len(failures)} failed" if failures else "all claims hold")
    for text in failures:
        print(f"- {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        child()
    raise SystemExit(main())
