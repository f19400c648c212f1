"""What llmprof's timing pass costs: its rounds against a bare loop over the same engine object.

Both live in the same worker process, interleaved. During a bare round the parent neither polls
nor samples NVML; during a timed round it does all that it does in a real run. Printed: the ratio of
the paired decode times with its 95 % interval. Goal: within 1 %.

A host whose speed wanders by 10 % from second to second cannot show 1 %, so the loop's own cost a
step is measured too, with an engine that does nothing.

    python benchmarks/harness_cost.py --model tiny
    python benchmarks/harness_cost.py --model llama2-7b --option dtype=fp16 --option cuda_graph=1
    python benchmarks/harness_cost.py --engine exllamav2 --model DIR
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llmprof.analysis.timing.stats import estimate
from llmprof.models.locate import resolve
from llmprof.session.client import WorkerClient
from llmprof.tracers.nvml.tracer import NvmlTracer
from llmprof.worker.rounds import timed_round
from llmprof.worker.stamps import StampBoard
from llmprof.workload import seeded_ids

PLUGIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "plugin"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{PLUGIN}:{os.environ.get('PYTHONPATH', '')}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ratios = measure(args, folder)
    logs = estimate(np.log(ratios).tolist(), "trimmed")
    ratio, low, high = (float(np.exp(v)) for v in (logs.value, logs.low, logs.high))
    print(
        f"{args.engine} {args.model} {' '.join(args.option)}: timed / bare = {ratio:.4f}"
        f" ({low:.4f}–{high:.4f}), {len(ratios)} pairs of {args.steps} steps"
    )
    print(f"the timed loop adds {loop_cost_ns():.0f} ns a step to a bare loop")
    return 0 if abs(ratio - 1) < 0.01 else 1


class Nothing:
    """An engine whose step costs a call and nothing else."""

    def reset(self) -> None: ...

    def prefill(self, prompt: object) -> list[int]:
        return [0]

    def decode_step(self) -> list[int]:
        return [0]


def loop_cost_ns() -> float:
    """Per step: the timed round less the bare loop, medians of 20 turns."""
    steps, engine = 20_000, Nothing()
    with tempfile.TemporaryDirectory() as name:
        board = StampBoard(Path(name) / "stamps", steps, create=True)
        extra = []
        for _ in range(20):
            timed_round(engine, [[1]], steps, board)  # type: ignore[arg-type]
            stamps = board.read()[3]
            begin = time.monotonic_ns()
            for _ in range(steps):
                engine.decode_step()
            extra.append((stamps[-1] - stamps[0] - (time.monotonic_ns() - begin)) / steps)
        board.close()
    return float(np.median(extra))


def measure(args: argparse.Namespace, folder: Path) -> np.ndarray:
    out = folder / "bare"
    client = WorkerClient("bare", sys.executable, folder, args.steps)
    never = lambda: False  # noqa: E731
    options = dict(pair.split("=", 1) for pair in args.option)
    nvml = NvmlTracer(on_samples=lambda samples: None)
    gpu = nvml.probe() is None
    try:
        client.wait_ready(never)
        prompt = [list(row) for row in seeded_ids(32, 1000, 1, 0)]
        ref = resolve(args.model)
        load = {"do": "load", "engine": "bare", "model": ref.path or ref.preset}
        load |= {"batch": 1, "seed": 0}
        load |= {"options": {**options, "engine": args.engine}}
        load["options"] |= {"out": str(out), "steps": str(args.steps)}
        load |= {"max_positions": 32 + args.steps + 1, "prompt": prompt, "steps": args.steps}
        load |= {"stamps": str(client.stamps_path), "spool": None, "trace": None}
        client.ask(load, 600, never)
        ratios = []
        timed_ns = 0
        for number in range(2 * args.pairs + 8):  # the first four pairs warm up
            ask = {"do": "round", "pass": "timing", "index": number, "serial": number + 1}
            ask["steps"] = args.steps
            if number % 2:
                client.ask(ask, 600, never, poll_s=600)
                bare_ns = int(out.read_text())
                if number > 8:
                    ratios.append(timed_ns / bare_ns)
            else:
                if gpu:
                    nvml = NvmlTracer(on_samples=lambda samples: None)
                    nvml.start()
                client.ask(ask, 600, never)
                if gpu:
                    nvml.stop()
                stamps = client.stamps()
                timed_ns = stamps[-1] - stamps[0]
        return np.array(ratios)
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
