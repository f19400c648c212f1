"""Tensor parallel torch on 2 or 4 GPUs: rates, exposed communication, bus bandwidth, who is late.

    python3 tests/gpu/run_ranks.py [--ranks N] [--budget 235] [--only rates,host] [--cap WATT]

Needs llmprof importable and torch with NCCL. Takes as many GPUs as there are (2, 4 or 8) and plants
into the last rank. Prints markdown and writes ranks.json to $OUT; exits 1 where a claim fails.
About 4 minutes on two H100s, 5 on four; a part that would not end within the budget is left out,
and said. ``--cap`` sets the power limit of the last GPU for one part and puts it back: only where
the settings are yours to change.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from ranks_checks import begun, check, failures, heading, kept, show  # noqa: E402
from ranks_programs import PLANT, SAFE, kernels_of, start  # noqa: E402
from ranks_recorded import from_nccl, sub_groups  # noqa: E402

BATCH = 256
HIDDEN = {"llama2-7b": 4096, "llama2-13b": 5120, "llama2-70b": 8192}
QUICK = ["--prompt-len", "64", "--bandwidth", "off"]


def llmprof(
    arguments: list[str], variables: dict[str, str] | None = None, keep: str = ""
) -> dict[str, Any]:
    """The JSON document of one run; ``keep`` names its run file in $OUT."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.sqlite"
        done = subprocess.run(
            [sys.executable, "-m", "llmprof", "--headless", "--json", "-o", str(file), *arguments],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, **SAFE, **(variables or {})},
            timeout=150,
            check=False,
        )
        if keep and file.exists() and (out := os.environ.get("OUT")):
            packed = lzma.compress(file.read_bytes(), preset=1)
            if len(packed) < 12 << 20:
                (Path(out) / f"{keep}.sqlite.xz").write_bytes(packed)
    if not done.stdout:
        print(done.stderr.decode(errors="replace")[-3000:])
        raise RuntimeError(f"llmprof gave nothing: {' '.join(arguments)}")
    document: dict[str, Any] = json.loads(done.stdout)
    for engine in document["engines"]:
        if engine["failure"]:
            print("failure:", engine["failure"])
    return document


def group_of(document: dict[str, Any], label: str) -> dict[str, Any]:
    found = [group for group in document["ranks"] or [] if group["engine"] == label]
    if not found:
        print("no group:", document.get("ranks_missing"), document.get("ranks_reason"))
        print("unavailable:", document["unavailable"])
        raise RuntimeError(f"no ranks of {label}")
    return found[0]


# -- parts ---------------------------------------------------------------------------------------


def on_the_spot(world: int) -> None:
    sizes = [2 * HIDDEN[m] for m in HIDDEN] + [2 * BATCH * HIDDEN["llama2-7b"], 64 << 20]
    for ranks in [n for n in (2, 4, 8) if n <= world]:
        heading(f"All-reduce of {ranks} ranks on the spot, by nccl-tests' formula")
        rows = [
            json.loads(line)
            for line in start(ranks, 29610 + ranks, "bandwidth", ",".join(map(str, sizes)))
            if line.startswith("{")
        ]
        print("| bytes | µs each | bus GB/s | kernel | kernel µs | bus GB/s of the kernel |")
        print("|---|---|---|---|---|---|")
        found: dict[str, dict[str, Any]] = {}
        for size in sizes:
            mine = [row for row in rows if row["bytes"] == size]
            us = max(row["us"] for row in mine)
            kernel = min(row["kernel_us"] or 0.0 for row in mine)
            factor = 2 * (ranks - 1) / ranks / 1e3
            one = {"us": us, "bus_gb_s": size / us * factor, "kernel_us": kernel}
            one["kernel_bus_gb_s"] = size / kernel * factor if kernel else 0.0
            one["kernel"] = mine[0]["kernel"]
            found[str(size)] = one
            print(
                f"| {size} | {us:.2f} | {one['bus_gb_s']:.3f} | {one['kernel']} | {kernel:.2f}"
                f" | {one['kernel_bus_gb_s']:.3f} |"
            )
        kept[f"on_the_spot {ranks}"] = found


def against_the_spot(group: dict[str, Any], model: str, batch: int) -> None:
    """The engine's all-reduce against the same size and as many ranks on the spot."""
    line = next(one for one in group["collectives"] if one["kind"] == "AllReduce")
    size = 2 * batch * HIDDEN[model]
    check(line["bytes"] == size, f"bytes of an all-reduce: {line['bytes']}, {size} by the model")
    ranks = len(group["ranks"])
    spot = kept.get(f"on_the_spot {ranks}", {}).get(str(size))
    if spot is None:
        return
    seen, kernel = line["bus_gb_s"] or 0.0, spot["kernel_bus_gb_s"]
    # In a step other kernels have had the caches and the clock; on the spot the same buffer is
    # reduced again and again.
    check(
        kernel / 1.3 <= seen <= kernel * 1.3,
        f"bus bandwidth of {size} bytes, {ranks} ranks: {seen:.3f} GB/s in the step; on the spot"
        f" {kernel:.3f} GB/s by the kernel, {spot['bus_gb_s']:.3f} GB/s by nccl-tests' formula",
    )
    link = group["gpus"][0]["nvlink_gb_s"] if group["gpus"] else None
    check(bool(link) and seen < link, f"NVLink carries {link} GB/s by NVML")


def rates(world: int, model: str, counts: list[int], steps: str = "48", rounds: str = "6") -> None:
    heading(f"torch, {model} shape, tp {counts}, CUDA graphs")
    engines: list[str] = []
    for n in counts:
        engines += ["--engine", f"torch:label=tp{n},tp={n},cuda_graph=1"]
    document = llmprof(
        [
            *engines, "--model", model, "--prompt-len", "64", "--decode-len", steps,
            "--traced-steps", steps, "--rounds", rounds, "--trace", "full",
            "--bandwidth", "steps",
        ],
        keep=f"rates-{model}-{counts[-1]}",
    )  # fmt: skip
    print("| engine | tok/s | slowdown traced | J/token |\n|---|---|---|---|")
    speed = {}
    for engine in document["engines"]:
        speed[engine["label"]] = (engine["tok_s"] or {}).get("median") or 0.0
        print(
            f"| {engine['label']} | {speed[engine['label']]:.2f}"
            f" | {engine['tracing']['slowdown']} | {engine['j_per_token']} |"
        )
    if len(counts) > 1:
        check(speed[f"tp{counts[-1]}"] > speed["tp1"], f"tp{counts[-1]} is faster than tp1")
    for fall in document["waterfalls"]:
        for basis in ("traced", "timing"):
            one = fall[basis]
            if one is None:
                check(False, f"waterfall {fall['b']} {basis}: {fall[f'{basis}_reason']}")
                continue
            print(f"\n{fall['a']} → {fall['b']}, {basis}: {one['words']}\n")
            print("| category | a ms | b ms |\n|---|---|---|")
            for part in one["parts"]:
                a, b = part["a_ns"] / 1e6, part["b_ns"] / 1e6
                print(f"| {part['category']} | {a:.3f} | {b:.3f} |")
            check(sum(p["b_ns"] for p in one["parts"]) == one["b_ns"], "parts add up to the step")
            names = {p["category"] for p in one["parts"]}
            both = {"communication: wait", "communication: transfer"}
            check(both <= names, "communication is wait and transfer")
    groups = {}
    for n in counts:
        if n == 1:
            continue
        print(f"\n### tp{n}\n")
        group = groups[n] = group_of(document, f"tp{n}")
        show(group)
        check(group["verdict"] == "balanced", f"tp{n} without a plant: {group['words']}")
        check(len(group["ranks"]) == n, f"{n} ranks are in the run")
        worst = max(clock["residual_ns"] for clock in group["clocks"]["ranks"])
        check(worst <= 2_000, f"ends agree within {worst} ns")
        check(all(line["unmatched"] == 0 for line in group["ranks"]), "every collective is matched")
        powers = [gpu["power_w"] for gpu in group["gpus"]]
        check(len(powers) == n and None not in powers, f"power of every GPU: {powers} W")
        against_the_spot(group, model, 1)
    missing = [m for m in document["unavailable"] if "rank" in str(m) or "GPU" in str(m)]
    print(f"\nnot to be had: {missing}")
    kept[f"rates {model} {counts}"] = {"tok_s": speed, "groups": groups, "missing": missing}


def batched(world: int) -> None:
    heading(f"torch tp{world}, llama2-7b shape, batch {BATCH}: all-reduces of 2 MiB")
    document = llmprof(
        [
            "--engine", f"torch:label=torch,tp={world},cuda_graph=1", "--model", "llama2-7b",
            *QUICK, "--batch", str(BATCH), "--decode-len", "24", "--traced-steps", "24",
            "--rounds", "1", "--trace", "full", "--no-host",
        ]
    )  # fmt: skip
    group = group_of(document, "torch")
    show(group)
    against_the_spot(group, "llama2-7b", BATCH)
    kept["batched"] = group


def plant(world: int, what: str, why: str, cap: int = 0) -> None:
    late = world - 1
    heading(f"Planted on rank {late}: {what}, llama2-7b, {world} ranks")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(PLANT)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        variables = {} if cap else {"LLMPROF_PLANT": f"{late}:{what}", "PYTHONPATH": path}
        document = llmprof(
            [
                "--engine", f"torch:label=torch,tp={world},cuda_graph=1", "--model", "llama2-7b",
                *QUICK, "--decode-len", "48", "--traced-steps", "48",
                "--rounds", "1", "--trace", "full",
            ],
            variables,
        )  # fmt: skip
    group = group_of(document, "torch")
    show(group)
    reason = group["reason"] or {}
    check(reason.get("rank") == late, f"rank {late} is named: {group['words']}")
    check(reason.get("why") == why, f"the reason is {why}: {reason.get('why')}")
    if what == "kernel":
        named = str(reason.get("kernel"))
        check("spin" in named, f"the kernel is named: {named}")
    named = "its host was in" in group["words"]
    check(not named or "planted" in group["words"], "no other function of the host is named")
    kept[f"planted {what}"] = group


def capped(world: int, watts: int) -> None:
    """The power limit of the last GPU, put back whatever happens."""
    device = str(world - 1)
    ask = ["nvidia-smi", "-i", device, "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    before = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(
        ["nvidia-smi", "-i", device, "-pl", str(watts)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"power cap refused: {(done.stdout + done.stderr).strip()}")
        return
    try:
        plant(world, f"power cap of {watts} W", "clock", watts)
    finally:
        subprocess.run(["nvidia-smi", "-i", device, "-pl", before], check=True)


def same_totals(world: int) -> None:
    heading("NCCL totals against torch.profiler's own files")
    with tempfile.TemporaryDirectory() as folder:
        start(world, 29613, "profiled", folder)
        files = sorted(Path(folder).glob("*.json"))
        true = {rank: kernels_of(file) for rank, file in enumerate(files)}
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "llmprof", "export", *map(str, files), "--to", "json"]
        done = subprocess.run(
            [*command, "-o", str(out), "--step-range", "decode *"],
            cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "XDG_CACHE_HOME": folder},
            timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            check(False, f"export: {done.stderr.decode(errors='replace')[-500:]}")
            return
        document = json.loads(out.read_text())
    if not document.get("ranks"):
        missing = document.get("ranks_missing"), document.get("warnings")
        check(False, f"the ranks' files are no group: {missing}")
        return
    group = document["ranks"][0]
    show(group)
    for line in group["ranks"]:
        ours = (line["wait_ms"] + line["transfer_ms"]) * group["steps"] * 1e3
        theirs = sum(k["dur"] for k in true[line["rank"]])
        # All collectives of the file are in its steps but those before the first bound.
        check(
            abs(ours - theirs) <= 0.02 * theirs,
            f"rank {line['rank']}: {ours:.1f} µs here, {theirs:.1f} µs in the file"
            f" ({len(true[line['rank']])} kernels)",
        )
    sized = [one for one in group["collectives"] if one["bytes"]]
    check(bool(sized), f"bytes of the collectives: {[one['bytes'] for one in sized]}")
    check((group["reason"] or {}).get("rank") == 1, f"rank 1 is late: {group['words']}")
    kept["profiler"] = group


def dead_rank(world: int) -> None:
    heading("A rank that dies, and more ranks than GPUs")
    base = [sys.executable, "-m", "llmprof", "--headless", "--json", "--model", "llama2-7b"]
    base += ["--prompt-len", "64", "--rounds", "400", "--trace", "steps", "--engine"]
    environment = {**os.environ, **SAFE}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*base, f"torch:tp={world},cuda_graph=1", "-o", str(Path(folder) / "run.sqlite")],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        victim = rank_process(process, 40.0)
        killed = time.monotonic()
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            check(False, "llmprof did not end within 60 s of the death of a rank")
            return
        took = time.monotonic() - killed
        said = err.decode(errors="replace").strip().splitlines()[-3:]
        good = victim is not None and process.returncode not in (0, None) and b"rank 1" in err + out
        check(good, f"killed rank 1: exit {process.returncode} after {took:.1f} s, said: {said}")
        done = subprocess.run(
            [*base, "torch:tp=64,cuda_graph=1", "-o", str(Path(folder) / "many.sqlite")],
            cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        text = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        check(done.returncode != 0, f"tp=64: exit {done.returncode}: {text}")


def rank_process(process: subprocess.Popen[bytes], patience_s: float) -> int | None:
    """The rank 1 of that run, once it decodes (its GPU memory is filled by then)."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and folder.name != str(process.pid):
                try:
                    words = (folder / "environ").read_bytes().split(b"\0")
                    command = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"RANK=1" in words and b"rank_process" in command:
                    time.sleep(20.0)
                    return int(folder.name)
        time.sleep(0.2)
    return None


def gpu_count() -> int:
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetCount())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--budget", type=float, default=235.0, help="s")
    parser.add_argument("--only", default="", help="parts, by commas")
    parser.add_argument("--cap", type=int, default=0, help="W")
    given = parser.parse_args()
    os.environ.update(SAFE)
    world = given.ranks or max(n for n in (1, 2, 4, 8) if n <= gpu_count())
    counts = [n for n in (1, 2, 4, 8) if n <= world]
    parts: dict[str, tuple[float, Callable[[], None]]] = {
        "spot": (25 if world == 2 else 40, lambda: on_the_spot(world)),
        "rates": (70 if world == 2 else 100, lambda: rates(world, "llama2-13b", counts)),
        "host": (30, lambda: plant(world, "host", "host")),
        "kernel": (30, lambda: plant(world, "kernel", "kernels")),
        "profiler": (20, lambda: same_totals(world)),
        "recorded": (25, lambda: from_nccl(world)),
        "groups": (25, lambda: sub_groups(world)),
        "70b": (60, lambda: rates(world, "llama2-70b", [world], "32", "3")),
        "batched": (35, lambda: batched(world)),
        "death": (55, lambda: dead_rank(world)),
    }
    if given.cap:
        parts["cap"] = (40, lambda: capped(world, given.cap))
    for name, (expected_s, part) in parts.items():
        if given.only and name not in given.only.split(","):
            continue
        if time.monotonic() - begun + expected_s > given.budget:
            print(f"\n{name} was left out: {given.budget:.0f} s would not be enough")
            continue
        try:
            part()
        except (RuntimeError, subprocess.SubprocessError, OSError, KeyError, ValueError) as why:
            check(False, f"{name}: {type(why).__name__}: {why}")
        write()
    heading("Result")
    print(f"{len(failures)} failed" if failures else "all claims hold")
    for text in failures:
        print(f"- {text}")
    return 1 if failures else 0


def write() -> None:
    if out := os.environ.get("OUT"):
        (Path(out) / "ranks.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
