"""What tracing costs: median decode steps under each tracer against the bare engine, interleaved.

    python benchmarks/trace_overhead.py --option dtype=fp16                    (eager, launch-bound)
    python benchmarks/trace_overhead.py --option dtype=fp16 --option cuda_graph=1
    python benchmarks/trace_overhead.py --modes bare,full,floor-full,torch-both

Every mode is a process of its own (CUPTI's kinds never change in a process, and it has one client),
all are resident at once and interleaved round by round,
in a random order. ``floor`` has the kinds of ``kernels`` with
callbacks that throw the buffers away: what CUPTI itself costs. Goals: steps ≤ 1.005; kernels within
0.5 % of the floor, and well under torch.profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.timing.stats import estimate
from llmprof.errors import EngineFailure
from llmprof.models.locate import resolve
from llmprof.records import Unavailable
from llmprof.session.client import WorkerClient
from llmprof.workload import seeded_ids

PLUGIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "plugin"
LLMPROF_MODES = {"bare": None, "steps": "steps", "kernels": "kernels", "full": "full"}
DEFAULT = "bare,steps,kernels,floor,torch-cuda"
PROMPT = 32
Medians = dict[str, NDArray[np.float64]]
"""Mode → median step of each round, ns."""


def never() -> bool:
    return False


class Mode:
    """One engine process under one tracer."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path) -> None:
        self.name = name
        self.level = LLMPROF_MODES.get(name)
        self.steps = args.steps
        self.medians: list[float] = []
        self.kernels = 0
        self.client = WorkerClient(name, sys.executable, folder, args.steps)
        self.client.wait_ready(never)
        options = dict(pair.split("=", 1) for pair in args.option)
        engine = "torch" if name in LLMPROF_MODES else "profiled"
        if engine == "profiled":
            options["under"] = name
        ref = resolve(args.model)
        load = {"do": "load", "engine": engine, "model": ref.path or ref.preset, "batch": 1}
        load |= {"options": options, "seed": 0, "max_positions": PROMPT + args.steps + 1}
        load |= {"prompt": [list(row) for row in seeded_ids(PROMPT, 1000, 1, 0)]}
        load |= {"steps": args.steps, "stamps": str(self.client.stamps_path)}
        load |= {"spool": str(folder / "spool"), "trace": self.level}
        reply = self.client.ask(load, 900, never)
        missing = {k: v for k, v in reply.facts["unavailable"].items() if k != "operators"}
        if missing:
            print(f"{name}: {missing}", file=sys.stderr)

    def round(self, number: int, keep: bool) -> None:
        kind = "timing" if self.level is None else "traced"
        ask = {"do": "round", "pass": kind, "index": number, "serial": number + 1}
        reply = self.client.ask({**ask, "steps": self.steps}, 600, never, poll_s=600)
        laps = np.diff(np.array(self.client.stamps(), np.int64))
        if keep:
            self.medians.append(float(statistics.median(laps.tolist())))
        for message, _ in reply.extra:
            self.dropped = message.get("cupti", {}).get("dropped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=1, help="sets of processes, in turn")
    parser.add_argument("--modes", default=DEFAULT)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{PLUGIN}:{os.environ.get('PYTHONPATH', '')}"
    names = args.modes.split(",")
    sets: list[Medians] = []
    for number in range(args.processes):
        found = one_set(names, args, random.Random(number))
        if found is None:
            return 1
        sets.append(found)
    report(args, names, sets)
    return 0


def one_set(names: list[str], args: argparse.Namespace, order: random.Random) -> Medians | None:
    """One process a mode, all resident; median steps of each round. ``None``: one failed."""
    modes: list[Mode] = []
    try:
        for name in order.sample(names, len(names)):
            folder = Path(tempfile.mkdtemp(prefix="llmprof-bench-"))
            modes.append(Mode(name, args, folder))
        for number in range(args.rounds + 2):
            for mode in order.sample(modes, len(modes)):
                mode.round(number, keep=number >= 2)
    except EngineFailure as why:
        print(why, file=sys.stderr)
        for mode in modes:
            print(mode.client.log_tail()[-2000:], file=sys.stderr)
        return None
    finally:
        for mode in modes:
            mode.client.kill()
    return {mode.name: np.array(mode.medians) for mode in modes}


def paired(sets: list[Medians], a: str, b: str) -> dict[str, float]:
    """Ratio of two modes' medians, round by round, with its 95 % interval.

    With several sets of processes each counts once: what a process has for life (where its memory
    lies, which processor it got) is then in the interval too.
    """
    logs = [np.log(medians[a] / medians[b]).tolist() for medians in sets]
    values = logs[0] if len(sets) == 1 else [estimate(each, "trimmed").value for each in logs]
    found = estimate(values, "trimmed")
    low, high = (
        math.nan if isinstance(bound, Unavailable) else math.exp(bound)
        for bound in (found.low, found.high)
    )
    return {"ratio": math.exp(found.value), "low": low, "high": high}


def report(args: argparse.Namespace, names: list[str], sets: list[Medians]) -> None:
    print(
        f"\n{args.model} {' '.join(args.option)}: {len(sets)} sets of processes,"
        f" {args.rounds} rounds of {args.steps} steps\n"
    )
    print("| mode | median step, ms | ratio to bare | 95 % interval |")
    print("|---|---|---|---|")
    rows: dict[str, dict[str, float]] = {}
    for name in names:
        step_ms = float(np.median(np.concatenate([medians[name] for medians in sets]))) / 1e6
        row = rows[name] = {"step_ms": step_ms, **paired(sets, name, names[0])}
        print(
            f"| {name} | {step_ms:.3f} | {row['ratio']:.4f} | {row['low']:.4f}–{row['high']:.4f} |"
        )
    print()
    for mode, floor in (("kernels", "floor"), ("full", "floor-full"), ("kernels", "torch-cuda")):
        if {mode, floor} <= rows.keys():
            row = rows[f"{mode} / {floor}"] = paired(sets, mode, floor)
            print(f"{mode} / {floor}: {row['ratio']:.4f} ({row['low']:.4f}–{row['high']:.4f})")
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "modes": rows}, default=str))


if __name__ == "__main__":
    sys.exit(main())
