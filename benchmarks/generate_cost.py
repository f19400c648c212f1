"""What stepping through transformers' ``generate`` costs: the drive against a plain call of it.

One process, one model, turns: ``model.generate`` with no streamer, timed as a whole, and the same
number of tokens through ``TransformersEngine`` (prefill and decode steps), whose ``generate``
sleeps in a greenlet between tokens. Printed: the ratio of the paired times with its 95 % interval.
Goal: within 1 %.

    python benchmarks/generate_cost.py --model tiny
    python benchmarks/generate_cost.py --model llama2-7b --option cache=static \\
        --option compile=reduce-overhead
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers

from llmprof.analysis.timing.stats import estimate
from llmprof.engines.base import LoadRequest
from llmprof.engines.transformers.engine import TransformersEngine
from llmprof.models.locate import resolve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    engine = TransformersEngine()
    ref = resolve(args.model)
    options = dict(entry.split("=", 1) for entry in args.option)
    prompt = [[5 + (7 * n) % 250 for n in range(32)]]
    request = LoadRequest(ref.path or str(ref.preset), options, 1, 32 + args.steps)
    engine.load(request, lambda text, share: None)
    plain = plain_generate(engine, prompt)

    def stepped() -> None:
        engine.prefill(prompt)
        for _ in range(args.steps):
            engine.decode_step()
        engine.reset()

    for _ in range(3):
        plain()
        stepped()
    ratios = []
    order = random.Random(0)
    for _ in range(args.pairs):
        first_plain = order.random() < 0.5
        times = [seconds(run) for run in ((plain, stepped) if first_plain else (stepped, plain))]
        ratios.append(times[1] / times[0] if first_plain else times[0] / times[1])
    logs = estimate(np.log(ratios).tolist(), "trimmed")
    ratio, low, high = (float(np.exp(v)) for v in (logs.value, logs.low, logs.high))
    print(
        f"transformers {transformers.__version__} {args.model} {' '.join(args.option)}:"
        f" stepped / plain generate = {ratio:.4f} ({low:.4f}–{high:.4f}),"
        f" {len(ratios)} pairs of {args.steps} steps"
    )
    return 0 if abs(ratio - 1) < 0.01 else 1


def plain_generate(engine: TransformersEngine, prompt: list[list[int]]) -> Callable[[], None]:
    """``generate`` of the same module under the same settings, which hold the length too."""
    module, ids = engine.module, torch.tensor(prompt)

    def run() -> None:
        moved = ids.to(module.device)
        found = module.generate(input_ids=moved, attention_mask=torch.ones_like(moved))
        found[0, -1].item()  # on the host, as a user of it waits for it

    return run


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
