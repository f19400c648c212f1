"""What the mlc engine's vm drive costs a step over the bare loop of virtual-machine calls.

Both use one loaded library, its parameters and KV cache, interleaved step by step, in a random
order within each pair of steps: what disturbs a machine lasts longer than that. Printed: the ratio
of the two median steps of a round with the 95 % interval over the rounds. Goal: under 1 %.

    python benchmarks/mlc_vm_cost.py                       # compiles the small Llama of the tests
    python benchmarks/mlc_vm_cost.py --lib LIB.so --model llama2-7b --device cuda
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.analysis.timing.stats import estimate
from llmprof.engines.base import LoadRequest
from llmprof.engines.mlc.engine import MlcEngine

TESTS = Path(__file__).resolve().parent.parent / "tests" / "support" / "weights"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lib", help="default: compile one")
    parser.add_argument("--model", default="random", help="a preset, an MLC folder, or random")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layers", type=int, default=8, help="of the library that is compiled")
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lib = args.lib or compiled(Path(name), args.layers)
        engine = MlcEngine()
        options = {"lib": lib, "drive": "vm", "device": args.device}
        positions = 32 + args.steps + 1
        engine.load(
            LoadRequest(args.model, options, max_positions=positions), lambda text, share: None
        )
        return measure(engine, args.steps, args.rounds)


def compiled(folder: Path, layers: int) -> str:
    sys.path.insert(0, str(TESTS))
    import mlc_tiny

    shape = replace(
        mlc_tiny.CONFIG, hidden_size=256, head_dim=64, intermediate_size=704, vocab_size=2048
    )
    build = mlc_tiny.Build(config=replace(shape, num_hidden_layers=layers))
    return str(mlc_tiny.compile_library(build, folder / "small.so"))


def measure(engine: MlcEngine, steps: int, rounds: int) -> int:
    prompt = [list(range(3, 35))]
    loops = {"drive": engine.decode_step, "bare": bare_step(engine)}
    order = random.Random(0)
    ratios, extra, bare_ns = [], [], []
    for number in range(rounds + 4):  # the first four warm up
        found = timed(engine, prompt, loops, steps, order)
        if number >= 4:
            ratios.append(found["drive"] / found["bare"])
            extra.append(found["drive"] - found["bare"])
            bare_ns.append(found["bare"])
    logs = estimate(np.log(ratios).tolist(), "trimmed")
    ratio, low, high = (float(np.exp(v)) for v in (logs.value, logs.low, logs.high))
    print(
        f"{engine.describe().model_format} on {engine.describe().device}: vm drive / bare loop ="
        f" {ratio:.4f} ({low:.4f}–{high:.4f}), {rounds} rounds of {steps} steps; bare"
        f" {np.median(bare_ns) / 1e6:.3f} ms a step, the drive adds {np.median(extra):.0f} ns"
    )
    return 0 if ratio - 1 < 0.01 else 1


def timed(
    engine: MlcEngine,
    prompt: Any,
    loops: dict[str, Callable[[], Any]],
    steps: int,
    order: random.Random,
) -> dict[str, float]:
    """Median step of each, ns; one sequence, decoded by turns."""
    engine.reset()
    engine.prefill(prompt)
    turns = list(loops)
    laps: dict[str, list[int]] = {turn: [] for turn in turns}
    for _ in range(steps // len(turns)):
        order.shuffle(turns)
        for turn in turns:
            step = loops[turn]
            begin = time.monotonic_ns()
            step()
            laps[turn].append(time.monotonic_ns() - begin)
    return {turn: float(np.median(lap)) for turn, lap in laps.items()}


def bare_step(engine: MlcEngine) -> Callable[[], None]:
    """The least that yields the next token: the calls in a row, on the drive's own objects."""
    drive: Any = engine.drive
    embed, reshape, begin, end = drive._embed, drive._reshape, drive._begin, drive._end
    decode, tensor, device, kv = drive._decode, drive._tensor, drive._device, drive._kv
    parameters, sequences, ones = drive._parameters, drive._sequences, drive._ones
    width = embed(tensor(np.zeros(1, np.int32), device), parameters).shape[-1]
    shape = drive._shape([1, 1, width])

    def step() -> None:
        embedded = reshape(embed(tensor(drive._last, device), parameters), shape)
        begin(kv, sequences, ones)
        result = decode(embedded, kv, parameters)
        end(kv)
        drive._last = np.array([result[0].numpy().argmax()], np.int32)

    return step


if __name__ == "__main__":
    sys.exit(main())
