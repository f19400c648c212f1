"""What sampling the host's stacks costs a decode step, as ratios of interleaved rounds.

    python benchmarks/host_overhead.py [--engine torch] [--model smollm2] [--rounds 12] [--steps 64]

One worker stays resident. Rounds with and without py-spy are interleaved at random; each ratio
is against the round without of the same turn: median over the turns, bootstrap interval (95 %).
Goal: nonblocking at 100 Hz and 1 kHz costs less than 3 % where a processor is free for py-spy.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from llmprof.models.locate import resolve
from llmprof.records import Unavailable
from llmprof.session.client import WorkerClient
from llmprof.tracers.pyspy.tracer import HostPlan, PySpyTracer

WAYS: dict[str, HostPlan | None] = {
    "none": None,
    "100 Hz nonblocking": HostPlan(100),
    "1 kHz nonblocking": HostPlan(1000),
    "100 Hz blocking": HostPlan(100, blocking=True),
    "1 kHz blocking": HostPlan(1000, blocking=True),
    "100 Hz native": HostPlan(100, native=True),
    "20 Hz native": HostPlan(20, native=True),
    "1 kHz native": HostPlan(1000, native=True),
}


def main() -> None:
    import sys

    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--ways", default=",".join(WAYS), help="some of: %(default)s")
    parser.add_argument("options", nargs="*", metavar="key=value")
    given = parser.parse_args()
    ref = resolve(given.model)
    with tempfile.TemporaryDirectory() as folder:
        client = WorkerClient("bench", sys.executable, Path(folder), given.steps)
        try:
            client.wait_ready(lambda: False)
            load: dict[str, Any] = {
                "do": "load",
                "engine": given.engine,
                "model": ref.path or ref.preset or ref.name,
                "options": dict(pair.split("=", 1) for pair in given.options),
                "batch": 1,
                "max_positions": given.steps + 64,
                "seed": 0,
                "prompt": [list(range(300, 332))],
                "steps": given.steps,
                "stamps": str(client.stamps_path),
                "spool": None,
                "trace": "steps",
            }
            ask(client, load)
            warm = {"do": "warmup", "steps": given.steps, "min_steps": 0, "max_s": 60.0}
            ask(client, warm)
            ways = [way for way in WAYS if way == "none" or way in given.ways.split(",")]
            measure(client, ways, given.rounds, given.steps, Path(folder))
        finally:
            client.kill()


def ask(client: WorkerClient, request: dict[str, Any]) -> dict[str, Any]:
    return client.ask(request, 300.0, lambda: False).facts


def measure(client: WorkerClient, ways: list[str], rounds: int, steps: int, folder: Path) -> None:
    found: dict[str, list[float]] = {way: [] for way in ways}
    kept: dict[str, list[str]] = {way: [] for way in ways}
    serial = 0
    order = random.Random(0)
    for turn in range(rounds):
        for way in order.sample(ways, len(ways)):
            serial += 1
            plan = WAYS[way]
            place = folder / str(serial)
            place.mkdir()
            tracer = None if plan is None else PySpyTracer(plan, place)
            try:
                if tracer is not None and plan is not None:
                    why = tracer.open_board()
                    request = {"do": "metronome", "board": str(tracer.board_path)}
                    pid = ask(client, {**request, "tick_ns": plan.tick_ns})["pid"]
                    why = why or tracer.start(client.pid, pid)
                    if why is not None:
                        raise SystemExit(f"{way}: {why.reason}")
                request = {"do": "round", "pass": "timing", "index": turn, "serial": serial}
                ask(client, {**request, "steps": steps})
                stamps = client.stamps()
                if tracer is not None:
                    samples = tracer.stop()
                    kept[way].append(
                        samples.reason
                        if isinstance(samples, Unavailable)
                        else f"{len(samples.samples)}"
                    )
            finally:
                if tracer is not None:
                    tracer.close()
            laps = [b - a for a, b in pairwise(stamps)]
            found[way].append(median(laps))
    base = np.array(found["none"])
    print(f"median step without py-spy: {median(found['none']) / 1e6:.3f} ms, {rounds} turns")
    for way in ways[1:]:
        ratios = np.array(found[way]) / base
        picks = np.random.default_rng(0).integers(0, len(ratios), (4000, len(ratios)))
        low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
        print(
            f"  {way:<20} ×{np.median(ratios):.3f} ({low:.3f}–{high:.3f})  samples {kept[way][-1]}"
        )


if __name__ == "__main__":
    main()
