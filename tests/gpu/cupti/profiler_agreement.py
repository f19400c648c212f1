"""llmprof's kernels and GPU busy time against torch.profiler's, on the torch Llama's own steps.

    python3 tests/gpu/cupti/profiler_agreement.py [--model llama2-7b] [--steps 32] [--json OUT]

One llmprof command traces the eager and the CUDA-graph engine. Then each decodes the same prompt,
with the same weights, in a process of its own under torch.profiler (a process has one CUPTI client,
so no step can be seen by both at once). The profiler's events are cut into steps at the copy that
brings each step's token to the host. Per step the number of kernels must be equal, and the busy
time (the union of kernels, copies and sets) within 1 %, and so must both be over all steps. Exits 1
where they are not, or where the tokens differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))
ENGINES: dict[str, dict[str, str]] = {"eager": {}, "graph": {"cuda_graph": "1"}}
PROMPT = 32
BOUND = 0.01


def profiled(kind: str, model: str, steps: int, out: Path) -> None:
    """Decode under torch.profiler; write tokens, and kernels and busy ns of every step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from llmprof.engines.base import LoadRequest
    from llmprof.engines.torch.engine import TorchEngine
    from llmprof.workload import seeded_ids

    activities = [ProfilerActivity.CUDA]
    with profile(activities=activities):  # CUPTI is attached before a graph is captured
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    prompt = [list(row) for row in seeded_ids(PROMPT, vocabulary(model), 1, 0)]
    engine = TorchEngine()
    engine.load(
        LoadRequest(model, ENGINES[kind], max_positions=PROMPT + steps + 1), lambda *_: None
    )
    for _ in range(3):
        engine.reset()
        engine.prefill(prompt)
        for _ in range(steps):
            engine.decode_step()
    engine.reset()
    tokens = [engine.prefill(prompt)[0]]
    torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        tokens += [engine.decode_step()[0] for _ in range(steps)]
    exported = out.with_suffix(".trace.json")
    profiler.export_chrome_trace(str(exported))
    events = json.loads(exported.read_text(encoding="utf-8"))["traceEvents"]
    out.write_text(json.dumps({"tokens": tokens, "steps": cut(events)}), encoding="utf-8")


def cut(events: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Kernels and busy ns between one device-to-host copy and the next, that copy included."""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    work = sorted((e for e in events if e.get("cat") in kinds), key=lambda e: float(e["ts"]))
    steps: list[dict[str, int]] = []
    kernels, busy, reached = 0, 0, 0
    for event in work:
        begin = round(float(event["ts"]) * 1000)
        end = begin + round(float(event["dur"]) * 1000)
        busy += max(0, end - max(begin, reached))
        reached = max(reached, end)
        kernels += event["cat"] == "kernel"
        if event["cat"] == "gpu_memcpy" and "DtoH" in event["name"]:
            steps.append({"kernels": kernels, "busy_ns": busy})
            kernels = busy = 0
    return steps


def vocabulary(model: str) -> int:
    from llmprof.models.presets import PRESETS

    return PRESETS[model].vocab_size


def traced(model: str, steps: int) -> dict[str, Any]:
    """The JSON document of one run over both engines."""
    command = [sys.executable, "-m", "llmprof", "--headless", "--json", "--model", model]
    for options in ENGINES.values():
        pairs = ",".join(f"{k}={v}" for k, v in options.items())
        command += ["--engine", f"torch:{pairs}" if pairs else "torch"]
    command += ["--prompt-len", str(PROMPT), "--decode-len", str(steps), "--rounds", "5"]
    command += ["--traced-steps", str(steps), "--trace", "kernels", "--no-host"]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=False, timeout=500)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def compare(kind: str, engine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    ours = engine["tracing"]["gpu"]["steps"]
    theirs = other["steps"]
    busy = [a["busy_ns"] / b["busy_ns"] for a, b in zip(ours, theirs, strict=True)]
    total = sum(s["busy_ns"] for s in ours) / sum(s["busy_ns"] for s in theirs)
    checks = {
        "the same tokens": engine["tokens"][0][: len(other["tokens"])] == other["tokens"],
        "kernels of every step equal": [s["kernels"] for s in ours]
        == [s["kernels"] for s in theirs],
        "busy time over all steps within 1 %": abs(total - 1) <= BOUND,
        "busy time of the median step within 1 %": abs(median(busy) - 1) <= BOUND,
        "busy time of every step within 1 %": max(abs(r - 1) for r in busy) <= BOUND,
    }
    found = {
        "engine": kind,
        "steps": len(ours),
        "kernels_per_step": [ours[0]["kernels"], theirs[0]["kernels"]],
        "busy_ms_per_step": [
            median(s["busy_ns"] for s in ours) / 1e6,
            median(s["busy_ns"] for s in theirs) / 1e6,
        ],
        "busy_ratio": {"all": total, "median": median(busy), "min": min(busy), "max": max(busy)},
        "checks": checks,
    }
    print(f"\n{kind}: {len(ours)} steps, llmprof / torch.profiler")
    print(f"  kernels a step {found['kernels_per_step']}, busy ms {found['busy_ms_per_step']}")
    print(f"  busy ratio {found['busy_ratio']}")
    for what, good in checks.items():
        print("  ok  " if good else "  FAIL", what)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        profiled(given.child, given.model, given.steps, given.out)
        return 0
    document = traced(given.model, given.steps)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, engine in zip(ENGINES, document["engines"], strict=True):
            out = Path(folder) / f"{kind}.json"
            command = [sys.executable, __file__, "--child", kind, "--out", str(out)]
            command += ["--model", given.model, "--steps", str(given.steps)]
            subprocess.run(command, check=True, timeout=300, cwd=ROOT)
            found.append(compare(kind, engine, json.loads(out.read_text(encoding="utf-8"))))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if all(good for entry in found for good in entry["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
