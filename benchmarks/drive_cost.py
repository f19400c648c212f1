"""What stepping costs: an engine's drive against the loop that a user of its package writes.

One process, one loaded engine, turns in random order: a plain loop, timed as a whole, and the same
number of tokens through ``prefill`` and ``decode_step``. Short turns, because a host's speed
wanders: two turns that follow each other meet nearly the same. Printed: the ratio of the paired
times with its 95 % interval, and the difference of a step. Goal: within 1 %.

Plain loops: transformers' ``generate``; a forward and an argmax with its cache; vLLM's
``LLMEngine.step`` until the request ends.

    python benchmarks/drive_cost.py --model tiny
    python benchmarks/drive_cost.py --model llama2-7b --option cache=static \\
        --option compile=reduce-overhead --pairs 120
    python benchmarks/drive_cost.py --model llama2-7b --option drive=forward \\
        --option compile=reduce-overhead
    python benchmarks/drive_cost.py --engine vllm --model llama2-7b
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from llmprof.analysis.timing.stats import estimate
from llmprof.engines.base import Engine, LoadRequest
from llmprof.models.locate import resolve

PROMPT = [[5 + (7 * n) % 250 for n in range(32)]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=60)
    args = parser.parse_args()
    engine = loaded(args)
    plain = plain_loop(args, engine)

    def stepped() -> None:
        engine.prefill(PROMPT)
        for _ in range(args.steps):
            engine.decode_step()
        engine.reset()

    for _ in range(5):
        plain()
        stepped()
    times = np.array(paired_times(plain, stepped, args.pairs))
    logs = estimate(np.log(times[:, 1] / times[:, 0]).tolist(), "trimmed")
    ratio, low, high = (float(np.exp(v)) for v in (logs.value, logs.low, logs.high))
    more = estimate(((times[:, 1] - times[:, 0]) / args.steps * 1e6).tolist(), "trimmed")
    print(
        f"{args.engine} {args.model} {' '.join(args.option)}: stepped / plain = {ratio:.4f}"
        f" ({low:.4f}–{high:.4f}), {more.value:+.1f} µs a step ({more.low:+.1f} to"
        f" {more.high:+.1f}) of {np.median(times[:, 0]) / args.steps * 1e3:.3f} ms,"
        f" {len(times)} pairs of {args.steps} steps",
        flush=True,
    )
    return 0 if abs(ratio - 1) < 0.01 else 1


def paired_times(
    plain: Callable[[], None], stepped: Callable[[], None], pairs: int
) -> list[tuple[float, float]]:
    """Seconds of (plain, stepped), turns of a pair in random order."""
    order, found = random.Random(0), []
    for _ in range(pairs):
        if order.random() < 0.5:
            first = seconds(plain)
            found.append((first, seconds(stepped)))
        else:
            first = seconds(stepped)
            found.append((seconds(plain), first))
    return found


def loaded(args: argparse.Namespace) -> Any:
    engine: Engine
    if args.engine == "vllm":
        from llmprof.engines.vllm.engine import VllmEngine

        engine = VllmEngine()
    else:
        from llmprof.engines.transformers.engine import TransformersEngine

        engine = TransformersEngine()
    ref = resolve(args.model)
    options = dict(entry.split("=", 1) for entry in args.option)
    # The plain loops make exactly as many tokens: the first one is the prompt's.
    request = LoadRequest(ref.path or str(ref.preset), options, 1, 32 + args.steps)
    engine.load(request, lambda text, share: None)
    return engine


def plain_loop(args: argparse.Namespace, engine: Any) -> Callable[[], None]:
    if args.engine == "vllm":
        return plain_vllm(engine, args.steps)
    if "drive=forward" in args.option:
        return plain_forward(engine, args.steps)
    return plain_generate(engine)


def plain_generate(engine: Any) -> Callable[[], None]:
    """``generate`` of the same module under the same settings, which hold the length too."""
    import torch

    module, ids = engine.module, torch.tensor(PROMPT)

    def run() -> None:
        moved = ids.to(module.device)
        found = module.generate(input_ids=moved, attention_mask=torch.ones_like(moved))
        found[0, -1].item()  # on the host, as a user of it waits for it

    return run


def plain_forward(engine: Any, steps: int) -> Callable[[], None]:
    """The loop of transformers' own cache documentation, each token read by the host.

    Around the drive's own compiled forward: two compilations of one function differ by more than
    the loop (1.4 % on an H100).
    """
    import torch

    module, drive, ids = engine.module, engine._drive, torch.tensor(PROMPT)

    def run() -> None:
        with torch.inference_mode():
            cache = drive.fresh()
            out = drive.forward_prompt(ids.to(module.device), cache)
            token = out[:, -1].argmax(dim=-1, keepdim=True)
            token.item()
            position = torch.full((1, 1), ids.shape[1], device=module.device)
            for _ in range(steps):
                token = drive.forward(token, position, cache)[:, -1].argmax(dim=-1, keepdim=True)
                token.item()
                position += 1

    return run


def plain_vllm(engine: Any, steps: int) -> Callable[[], None]:
    """``LLMEngine.step`` until the request has ended by its length."""
    from vllm import SamplingParams

    llm, number = engine.llm, [0]
    params = SamplingParams(
        temperature=0.0, max_tokens=steps + 1, ignore_eos=True, detokenize=False
    )

    def run() -> None:
        number[0] += 1
        llm.add_request(f"plain-{number[0]}", {"prompt_token_ids": PROMPT[0]}, params)
        while llm.has_unfinished_requests():
            llm.step()

    return run


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
