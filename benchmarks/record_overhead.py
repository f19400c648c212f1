"""What ``llmprof record`` costs a program: paired, interleaved rounds of resident processes.

    python3 benchmarks/record_overhead.py [--rounds 30] [--layers 16] [--modes bare,full,off]

One process a mode runs the decode loop of tests/gpu/recorded/record_targets.py, eager and in a CUDA
graph; they are interleaved round by round in random order, so disturbances hit all alike.

bare      nothing injected
floor     CUPTI's own cost: the same kinds, every buffer thrown away
kernels   ``--trace kernels``
full      ``--trace full`` (the default)
off       ``--trace full`` in a window that has not opened yet
closed    the same, opened when the graph was there, and closed as by --for and --detach: CUPTI goes
shut      the same, closed as by the key, to be opened again: CUPTI stays in the process
bare2     nothing injected, another process: what two processes differ by

Printed: medians over rounds of each round's median step, the ratio to bare and to the floor with a
95 % bootstrap interval. Goals: full / floor at most 1.005 in a CUDA graph and within noise eager;
off / bare at most 1.005, where bare2 / bare is as near to 1. Needs torch with CUDA and a C
compiler; ``--device cpu`` rehearses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu" / "recorded")]
MODES = {
    "bare": None, "bare2": None, "floor": "floor", "kernels": "kernels", "full": "full",
    "off": "full", "closed": "full", "shut": "full",
}  # fmt: skip

SHUT = ("bare", "bare2", "off", "closed", "shut")
"""Nothing is recorded in them."""


def worker(layers: int, device: str) -> None:
    """Answers ``eager N`` and ``graph N`` with the latency of N steps, ns."""
    import torch
    from record_targets import Loop, captured

    with torch.inference_mode():
        model = Loop(layers, 4096 if device == "cuda" else 64, device)
        graph = captured(model) if device == "cuda" else None
        print("ready", flush=True)
        for line in sys.stdin:
            kind, count = line.split()
            taken = []
            for _ in range(int(count)):
                begin = time.perf_counter_ns()
                if kind == "graph" and graph is not None:
                    graph.replay()
                else:
                    model()
                model.token.item()
                taken.append(time.perf_counter_ns() - begin)
            print(json.dumps(taken), flush=True)


def ask(process: subprocess.Popen[str], kind: str, steps: int) -> list[int]:
    assert process.stdout is not None and process.stdin is not None
    process.stdin.write(f"{kind} {steps}\n")
    process.stdin.flush()
    answer: list[int] = json.loads(process.stdout.readline())
    return answer


def interval(ratios: list[float]) -> tuple[float, float]:
    source = random.Random(0)
    means = sorted(median(source.choices(ratios, k=len(ratios))) for _ in range(2000))
    return means[50], means[-51]


def report(kind: str, found: dict[str, list[float]]) -> None:
    print(f"-- {kind}: {len(found['bare'])} rounds", flush=True)
    for mode, values in found.items():
        line = f"{mode:8} {median(values) / 1e3:10.1f} µs"
        for base in ("bare", "floor"):
            if base in found and mode != base and not (mode in SHUT and base == "floor"):
                ratios = [a / b for a, b in zip(values, found[base], strict=True)]
                low, high = interval(ratios)
                line += f"   / {base} {median(ratios):.4f} ({low:.4f}–{high:.4f})"
        print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--modes", default="bare,bare2,floor,kernels,full,off,closed,shut")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.layers, arguments.device)
        return 0
    from llmprof.native.build import library
    from llmprof.recording.control import ACTIVITY, LEAVE, RANGES, ControlPage
    from llmprof.recording.run import cache_folder

    recorder = str(library(cache_folder()))
    modes = arguments.modes.split(",")
    with ExitStack() as stack:
        workers = {}
        closed: dict[str, ControlPage] = {}
        for mode in modes:
            variables = dict(os.environ)
            if MODES[mode] is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                page = ControlPage(folder, RANGES | (0 if mode in SHUT else ACTIVITY))
                if mode in ("closed", "shut"):
                    closed[mode] = page
                stack.callback(page.close)
                variables |= {
                    "CUDA_INJECTION64_PATH": recorder,
                    "NVTX_INJECTION64_PATH": recorder,
                    "LLMPROF_RECORD_DIR": str(folder),
                    "LLMPROF_RECORD_TRACE": str(MODES[mode]),
                }
            command = [sys.executable, __file__, "--worker", "--layers", str(arguments.layers)]
            workers[mode] = stack.enter_context(
                subprocess.Popen(
                    [*command, "--device", arguments.device],
                    env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        for mode, process in workers.items():
            assert process.stdout is not None and process.stdin is not None
            if process.stdout.readline().strip() != "ready":
                print(f"{mode}: the worker did not start", file=sys.stderr)
                return 1
        kinds = ("eager", "graph") if arguments.device == "cuda" else ("eager",)
        for mode, page in closed.items():
            for wanted in (RANGES | ACTIVITY, RANGES | (LEAVE if mode == "closed" else 0)):
                page.want(wanted)
                time.sleep(0.5)
                for kind in kinds:
                    ask(workers[mode], kind, arguments.steps)
        found: dict[str, dict[str, list[float]]] = {k: {m: [] for m in modes} for k in kinds}
        shuffle = random.Random(1)
        for number in range(arguments.rounds + 2):
            for kind in kinds:
                for mode in shuffle.sample(modes, len(modes)):
                    taken = ask(workers[mode], kind, arguments.steps)
                    if number > 1:  # the first rounds warm up
                        found[kind][mode].append(median(taken[2:]))
        for process in workers.values():
            assert process.stdin is not None
            process.stdin.close()
    for kind in kinds:
        report(kind, found[kind])
    return 0


if __name__ == "__main__":
    sys.exit(main())
