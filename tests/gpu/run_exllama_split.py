"""ExLlama v2 and v3 over several GPUs: layer split and tensor parallel beside one GPU.

    python3 tests/gpu/run_exllama_split.py [--gpus 2] [--only v2,v3] [--layers 8] [--budget S]

Needs llmprof, torch for CUDA, the packages exllamav2 and exllamav3 and their extensions
(LLMPROF_EXTENSIONS_DIR, see run_exllama.py), and two GPUs. Each family is one run of llmprof over
the same random weights, llama2-7b with fewer layers. Prints a line a claim and writes split.json
and the run files to $OUT; exits 1 where a claim fails. About 40 s a run of two or three engines.
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
from llmprof.models.presets import PRESETS  # noqa: E402

failures: list[str] = []
kept: dict[str, Any] = {"claims": []}
begun = time.monotonic()
ends = begun + 1e9
"""When the budget is spent."""
LIMIT_S, LEAST_S = 50.0, 20.0
"""Of one run of llmprof."""
MUST_AGREE = 3
"""First tokens; v2 sums with atomics, and random weights have near ties."""


def check(good: bool, text: str) -> None:
    print(f"- {'ok' if good else '**FAILED**'}: {text}", flush=True)
    kept["claims"].append({"holds": good, "claim": text})
    if not good:
        failures.append(text)


def weights(folder: Path, layers: int, engine: str, *more: str) -> str:
    begin = time.monotonic()
    shape = PRESETS["llama2-7b"]
    config = folder.with_suffix(".json")
    config.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": shape.hidden_size,
                "intermediate_size": shape.intermediate_size,
                "num_hidden_layers": layers,
                "num_attention_heads": shape.num_attention_heads,
                "num_key_value_heads": shape.num_key_value_heads,
                "head_dim": shape.head_dim,
                "vocab_size": shape.vocab_size,
                "rms_norm_eps": shape.rms_norm_eps,
                "rope_theta": shape.rope_theta,
                "max_position_embeddings": 2048,
                "hidden_act": "silu",
                "tie_word_embeddings": False,
            }
        )
    )
    command = [sys.executable, "-m", "llmprof", "model", "synth", "--config", str(config)]
    command += ["--engine", engine, *more, "-o", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)
    print(f"({folder.name}: weights in {time.monotonic() - begin:.0f} s)", flush=True)
    return str(folder)


def run(engines: list[str], file: Path, limit_s: float) -> dict[str, Any]:
    """llmprof's document; where it does not end in time, where its workers stand."""
    command = [sys.executable, "-m", "llmprof", "--headless", "--json", "-o", str(file)]
    for engine in engines:
        command += ["--engine", engine]
    command += ["--prompt-len", "64", "--decode-len", "32", "--traced-steps", "32", "--rounds", "2"]
    command += ["--trace", "full", "--bandwidth", "steps", "--no-host"]
    out, err = file.with_suffix(".out"), file.with_suffix(".err")
    with out.open("wb") as answers, err.open("wb") as words:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **SAFE}, stdout=answers, stderr=words
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            stand()
            process.terminate()
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if not out.stat().st_size:
        raise RuntimeError(
            f"llmprof ended with {process.returncode}: {err.read_text(errors='replace')[-4000:]}"
        )
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def stand() -> None:
    """Print the stacks of all processes of llmprof."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"boot.py" in command or b"spawn_main" in command:
            done = subprocess.run(
                ["py-spy", "dump", "--pid", folder.name], capture_output=True, text=True,
                timeout=10, check=False,
            )  # fmt: skip
            print(f"-- {folder.name} {command[:200]!r}\n{done.stdout[:2500]}{done.stderr[:300]}")


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
        document = run(engines, file, min(LIMIT_S, ends - time.monotonic()))
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
    least = min(len(one), len(two))
    return next((n for n in range(least) if one[n] != two[n]), least)


def kernels(file: Path) -> list[tuple[int, int, int, int]]:
    """(process, device, kernels, ns) of the run file."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables:
            return []
        return db.execute(
            "SELECT (globalPid >> 24) & 0xffffff, deviceId, count(*), sum(end - start)"
            " FROM CUPTI_ACTIVITY_KIND_KERNEL GROUP BY 1, 2"
        ).fetchall()


def v2(folder: Path, layers: int, gpus: int) -> tuple[list[str], dict[str, int], list[str]]:
    """Engines of the first run, processes that are traced of each, engines of a second run."""
    model = weights(folder / "exl2", layers, "exllamav2", "--format", "exl2", "--head-bits", "6")
    # A layer has 0.1 GB; scratch, tables and one matrix dequantised come to it.
    split = "/".join([f"{0.3 + 0.1 * layers / gpus:.2f}"] * (gpus - 1) + ["40"])
    plain = f"exllamav2:cudnn_attention=0,model={model}"
    return (
        [f"{plain},label=one", f"{plain},label=tp,tp={gpus}"],
        {"tp": 1, "layers": 1, "tp-forward": 1},
        [
            f"{plain},label=layers,gpu_split={split}",
            f"{plain},label=tp-forward,tp={gpus},drive=forward",
        ],
    )


def v3(folder: Path, layers: int, gpus: int) -> tuple[list[str], dict[str, int], list[str]]:
    model = weights(folder / "exl3", layers, "exllamav3")
    split = "/".join([f"{0.6 + 0.1 * layers / gpus:.2f}"] * (gpus - 1) + ["40"])
    plain = f"exllamav3:model={model}"
    return (
        [f"{plain},label=one", f"{plain},label=tp,tp={gpus}"],
        {"tp": gpus, "nccl": gpus, "layers": 1},
        [
            f"{plain},label=nccl,tp={gpus},tp_backend=nccl",
            f"{plain},label=layers,gpu_split={split}",
        ],
    )


def main() -> int:
    global ends
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--only", default="v2,v3")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--budget", type=float, default=1e9, help="s")
    given = parser.parse_args()
    ends = begun + given.budget
    os.environ.update(SAFE)
    with tempfile.TemporaryDirectory() as scratch:
        runs: list[tuple[str, str, list[str], dict[str, int]]] = []
        for name in given.only.split(","):
            part = {"v2": v2, "v3": v3}[name]
            first, expected, second = part(Path(scratch), given.layers, given.gpus)
            runs.append((name, f"exllama{name}", first, expected))
            runs.append((name, f"exllama{name}-more", second, expected))
        alone: dict[str, list[list[int]]] = {}
        for name, title, engines, expected in sorted(runs, key=lambda one: "more" in one[1]):
            if ends - time.monotonic() < LEAST_S:
                print(f"\n{title} was left out: the budget is spent")
                continue
            try:
                alone[name] = family(title, engines, given.gpus, expected, alone.get(name))
            except (RuntimeError, subprocess.SubprocessError, OSError, KeyError, ValueError) as why:
                check(False, f"{title}: {type(why).__name__}: {why}")
            if out := os.environ.get("OUT"):
                (Path(out) / "split.json").write_text(json.dumps(kept, indent=1))
    print(f"\n{len(failures)} failed" if failures else "\nall claims hold")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
