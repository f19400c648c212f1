"""ExLlama v2 and v3 over several GPUs: layer split and tensor parallel beside one GPU.

    python3 tests/gpu/run_exllama_split.py [--gpus 2] [--only v2,v3] [--shape llama2-7b]

Needs llmprof, torch for CUDA, the packages exllamav2 and exllamav3 and their extensions
(LLMPROF_EXTENSIONS_DIR, see run_exllama.py), and two GPUs. Each family is one run of llmprof over
the same random weights. Prints a line a claim and writes split.json and the run files to $OUT;
exits 1 where a claim fails. About 60 s a family on two H100s.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from ranks_programs import SAFE  # noqa: E402

from llmprof.analysis.view.opening import open_run  # noqa: E402

failures: list[str] = []
kept: dict[str, Any] = {"claims": []}
begun = time.monotonic()
MUST_AGREE = 3
"""First tokens; v2 sums with atomics, and random weights have near ties."""


def check(good: bool, text: str) -> None:
    print(f"- {'ok' if good else '**FAILED**'}: {text}", flush=True)
    kept["claims"].append({"holds": good, "claim": text})
    if not good:
        failures.append(text)


def weights(folder: Path, shape: str, engine: str, *more: str) -> str:
    begin = time.monotonic()
    command = [sys.executable, "-m", "llmprof", "model", "synth", shape, "--engine", engine, *more]
    subprocess.run([*command, "-o", str(folder)], check=True, cwd=ROOT, timeout=120)
    print(f"({folder.name}: weights in {time.monotonic() - begin:.0f} s)", flush=True)
    return str(folder)


def run(engines: list[str], file: Path, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "llmprof", "--headless", "--json", "-o", str(file)]
    for engine in engines:
        command += ["--engine", engine]
    command += ["--prompt-len", "64", "--decode-len", "48", "--traced-steps", "48", "--rounds", "4"]
    command += ["--trace", "full", "--bandwidth", "steps"]
    try:
        done = subprocess.run(
            command, capture_output=True, cwd=ROOT, env={**os.environ, **SAFE}, timeout=limit_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as why:
        text = (why.stderr or b"").decode(errors="replace")[-2000:]
        raise RuntimeError(f"llmprof did not end within {limit_s:.0f} s: {text}") from None
    if not done.stdout:
        raise RuntimeError(done.stderr.decode(errors="replace")[-3000:])
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def family(
    name: str,
    engines: list[str],
    gpus: int,
    expected: dict[str, int],
    alone: list[list[int]] | None = None,
) -> list[list[int]]:
    """One run of llmprof, and what it must show.

    Args:
        expected: label → processes that have kernels.
        alone: tokens of one GPU; ``None``: those of the first engine here.

    Returns:
        The tokens of one GPU.
    """
    print(f"\n## {name} ({time.monotonic() - begun:.0f} s)\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.sqlite"
        document = run(engines, file, 150)
        if out := os.environ.get("OUT"):
            packed = lzma.compress(file.read_bytes(), preset=1)
            if len(packed) < 14 << 20:
                (Path(out) / f"{name}.sqlite.xz").write_bytes(packed)
        data = open_run(file)
        tokens = {
            engine.label: next(
                (r.tokens for r in data.rounds if r.engine_id == engine.engine_id and r.tokens), []
            )
            for engine in data.engines
        }
        lanes = kernels(file)
    print("| engine | on | tok/s | J/token | MiB of each GPU | traced |\n|---|---|---|---|---|---|")
    for engine in document["engines"]:
        if engine["failure"]:
            check(False, f"{engine['label']}: {engine['failure']}")
            continue
        info = next(e.info for e in data.engines if e.label == engine["label"])
        speed = (engine["tok_s"] or {}).get("median") or 0.0
        print(
            f"| {engine['label']} | {info.device if info else ''} | {speed:.1f}"
            f" | {engine['j_per_token']} | | {engine['tracing']['slowdown']} |"
        )
        check(engine["j_per_token"] is not None, f"{engine['label']}: energy of all its GPUs")
    for row in lanes:
        print(f"kernels: process {row[0]}, GPU {row[1]}: {row[2]:,} in {row[3] / 1e6:.2f} ms")
    reference = alone or next(iter(tokens.values()))
    for label, mine in tokens.items():
        if mine is not reference:
            same = common(reference, mine)
            check(same >= MUST_AGREE, f"{label}: agrees with one GPU on the first {same} tokens")
    by_pid: dict[int, set[int]] = {}
    for pid, device, _, _ in lanes:
        by_pid.setdefault(pid, set()).add(device)
    for engine in data.engines:
        if engine.label not in expected or engine.info is None:
            continue
        pids = [engine.traced_pid, *(one.pid for one in engine.traced_ranks[1:])]
        devices = set().union(*(by_pid.get(pid or 0, set()) for pid in pids))
        wanted = set(range(gpus))
        check(devices == wanted, f"{engine.label}: kernels on GPUs {sorted(devices)}")
        traced = sum(1 for pid in pids if by_pid.get(pid or 0))
        check(traced == expected[engine.label], f"{engine.label}: {traced} processes traced")
    print("\nranks of:", [group["engine"] for group in document["ranks"] or []])
    for group in document["ranks"] or []:
        print(f"{group['engine']}: {group['words']}\n  {group['clocks']['words']}")
        for line in group["ranks"]:
            keys = ("wait_ms", "transfer_ms", "exposed_ms", "compute_ms", "idle_ms")
            print(f"  {line['name']}:", {k: round(line[k], 3) for k in keys})
        for one in group["collectives"]:
            print(
                f"  {one['name']}: {one['per_step']:.0f} a step, {one['transfer_us']:.1f} µs,"
                f" wait {one['wait_us']:.1f} µs, {one['bytes']} bytes, bus {one['bus_gb_s']}"
            )
    for skew in document["skews"] or []:
        print(f"{skew['engine']}: {skew['words']}")
    print("no ranks:", document.get("ranks_missing"))
    print("not to be had:", document["unavailable"])
    kept[name] = {
        "tokens": {label: [list(row)[:12] for row in rows] for label, rows in tokens.items()},
        "lanes": lanes,
        "ranks": document["ranks"],
        "skews": document["skews"],
    }
    return reference


def common(a: list[list[int]], b: list[list[int]]) -> int:
    one, two = (a[0] if a else []), (b[0] if b else [])
    return next((n for n, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), len(one))


def kernels(file: Path) -> list[tuple[int, int, int, int]]:
    """(process, device, kernels, ns) of the run file."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        return db.execute(
            "SELECT (globalPid >> 24) & 0xffffff, deviceId, count(*), sum(end - start)"
            " FROM CUPTI_ACTIVITY_KIND_KERNEL GROUP BY 1, 2"
        ).fetchall()


def v2(folder: Path, shape: str, gpus: int) -> None:
    model = weights(folder / "exl2", shape, "exllamav2", "--format", "exl2", "--head-bits", "6")
    split = "/".join(["2.2"] * (gpus - 1) + ["40"])
    engines = [
        f"exllamav2:label=one,model={model}",
        f"exllamav2:label=layers,gpu_split={split},model={model}",
        f"exllamav2:label=tp{gpus},tp={gpus},model={model}",
    ]
    alone = family("exllamav2", engines, gpus, {"layers": 1, f"tp{gpus}": 1})
    engines = [
        f"exllamav2:label=layers-forward,drive=forward,gpu_split={split},model={model}",
        f"exllamav2:label=tp{gpus}-forward,tp={gpus},drive=forward,model={model}",
    ]
    expected = {"layers-forward": 1, f"tp{gpus}-forward": 1}
    family("exllamav2-forward", engines, gpus, expected, alone)


def v3(folder: Path, shape: str, gpus: int) -> None:
    model = weights(folder / "exl3", shape, "exllamav3")
    split = "/".join(["2.6"] * (gpus - 1) + ["40"])
    engines = [
        f"exllamav3:label=one,model={model}",
        f"exllamav3:label=tp{gpus},tp={gpus},model={model}",
    ]
    alone = family("exllamav3", engines, gpus, {f"tp{gpus}": gpus})
    engines = [
        f"exllamav3:label=layers,gpu_split={split},model={model}",
        f"exllamav3:label=tp{gpus}-nccl,tp={gpus},tp_backend=nccl,model={model}",
    ]
    family("exllamav3-more", engines, gpus, {"layers": 1, f"tp{gpus}-nccl": gpus}, alone)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--only", default="v2,v3")
    parser.add_argument("--shape", default="llama2-7b")
    given = parser.parse_args()
    os.environ.update(SAFE)
    with tempfile.TemporaryDirectory() as scratch:
        for name, part in (("v2", v2), ("v3", v3)):
            if name not in given.only.split(","):
                continue
            try:
                part(Path(scratch), given.shape, given.gpus)
            except (RuntimeError, subprocess.SubprocessError, OSError, KeyError, ValueError) as why:
                check(False, f"{name}: {type(why).__name__}: {why}")
            if out := os.environ.get("OUT"):
                (Path(out) / "split.json").write_text(json.dumps(kept, indent=1))
    print(f"\n{len(failures)} failed" if failures else "\nall claims hold")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
