"""What ``llmprof record`` costs a program: paired, interleaved rounds of resident processes.

    python3 benchmarks/record_overhead.py [--parts cost,floor,window] [--rounds 24] [--layers 12]

Each process runs the decode loop of tests/gpu/recorded/record_targets.py, eager and in a CUDA
graph. All wait for their turn: round by round, in random order, so disturbances hit all alike.

cost     a process a mode, against one with nothing injected: ``bare2`` the same once more (what two
         processes differ by), ``full`` (``--trace full``, the default), ``late`` (the same in a
         window that opened later), ``kernels``, and ``off``, a window that has not opened
floor    the recorder against CUPTI's own cost, within one process: what CUPTI hands over is
         written, or thrown away, by turns; two processes each
window   a window that was open and is closed, within one process: its steps before the window
         opened and after it closed, against the same change of processes with nothing injected;
         ``shut`` is ``--no-detach``, which leaves CUPTI there

Printed: ratios of medians with a 95 % bootstrap interval. Goals: ``floor`` at most 1.005 in a CUDA
graph and within noise eager; ``off`` and ``window`` at most 1.005. Needs torch with CUDA and a C
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
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu" / "recorded")]

from llmprof.native.build import library  # noqa: E402
from llmprof.recording.control import ACTIVITY, FLOOR, LEAVE, RANGES, ControlPage  # noqa: E402
from llmprof.recording.run import cache_folder  # noqa: E402

LEVELS = {
    "full": "full",
    "late": "full",
    "kernels": "kernels",
    "off": "full",
    "closed": "full",
    "shut": "full",
}
"""``--trace`` of the modes with the recorder."""
OPENED = ("full", "kernels")
WARM_UP = 2
"""Rounds that are not counted."""
SETTLE_S = 0.4


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


class Resident:
    """A process that decodes when it is asked to."""

    def __init__(self, mode: str, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self.mode = mode
        self._steps = arguments.steps
        variables = dict(os.environ)
        self.page: ControlPage | None = None
        if mode in LEVELS:
            recorder = str(library(cache_folder()))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.page = ControlPage(folder, RANGES | (ACTIVITY if mode in OPENED else 0))
            stack.callback(self.page.close)
            variables |= {
                "CUDA_INJECTION64_PATH": recorder,
                "NVTX_INJECTION64_PATH": recorder,
                "LLMPROF_RECORD_DIR": str(folder),
                "LLMPROF_RECORD_TRACE": LEVELS[mode],
            }
        command = [sys.executable, __file__, "--worker", "--layers", str(arguments.layers)]
        self._process = stack.enter_context(
            subprocess.Popen(
                [*command, "--device", arguments.device],
                env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        assert self._process.stdin is not None
        stack.callback(self._process.stdin.close)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def wait(self) -> None:
        if self._answer().strip() != "ready":
            raise SystemExit(f"{self.mode}: the process did not start")

    def step_ns(self, kind: str) -> float:
        """Median of a round's steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {self._steps}\n")
        self._process.stdin.flush()
        taken: list[int] = json.loads(self._answer())
        return median(taken[2:])

    def want(self, bits: int) -> None:
        assert self.page is not None
        self.page.want(bits)


Rounds = dict[str, list[list[float]]]
"""Kind of step → of each process, each round's median step, ns."""


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.kinds = ("eager", "graph") if arguments.device == "cuda" else ("eager",)
        self._order = random.Random(1)

    def start(self, modes: Sequence[str], stack: ExitStack) -> list[Resident]:
        processes = [Resident(mode, self.arguments, stack) for mode in modes]
        for process in processes:
            process.wait()
        return processes

    def measure(
        self, processes: Sequence[Resident], before: Callable[[Resident, int], None] | None = None
    ) -> Rounds:
        """Rounds of all processes; ``before`` is told the process and the number of the round."""
        found: Rounds = {kind: [[] for _ in processes] for kind in self.kinds}
        for number in range(self.arguments.rounds + WARM_UP):
            for kind in self.kinds:
                for i in self._order.sample(range(len(processes)), len(processes)):
                    if before is not None:
                        before(processes[i], number)
                    taken = processes[i].step_ns(kind)
                    if number >= WARM_UP:
                        found[kind][i].append(taken)
        return found


def interval(statistic: Callable[[random.Random], float], times: int = 2000) -> str:
    source = random.Random(0)
    found = sorted(statistic(source) for _ in range(times))
    return f"({found[times // 40]:.4f}–{found[-times // 40 - 1]:.4f})"


def ratio_of(pairs: Sequence[float]) -> str:
    """Median of a round's ratios."""
    again = interval(lambda source: median(source.choices(pairs, k=len(pairs))))
    return f"{median(pairs):.4f} {again}"


def cost(bench: Bench) -> None:
    modes = ("bare", "bare2", "off", "kernels", "full", "late")
    with ExitStack() as stack:
        processes = bench.start(modes, stack)
        processes[-1].want(RANGES | ACTIVITY)
        time.sleep(SETTLE_S)
        found = bench.measure(processes)
    for kind, rounds in found.items():
        print(f"-- cost, {kind}: {bench.arguments.rounds} rounds", flush=True)
        for mode, mine in zip(modes, rounds, strict=True):
            pairs = [a / b for a, b in zip(mine, rounds[0], strict=True)]
            told = "" if mode == "bare" else f"   / bare {ratio_of(pairs)}"
            print(f"{mode:8} {median(mine) / 1e3:10.1f} µs{told}", flush=True)


def floor(bench: Bench) -> None:
    """Rounds by turns: odd ones are thrown away."""
    modes = ("full", "full", "kernels", "kernels")

    def turn(process: Resident, number: int) -> None:
        process.want(RANGES | ACTIVITY | (FLOOR if number % 2 else 0))

    bench.arguments.rounds *= 2
    with ExitStack() as stack:
        found = bench.measure(bench.start(modes, stack), turn)
    bench.arguments.rounds //= 2
    for kind, rounds in found.items():
        print(f"-- recorder / CUPTI's floor, {kind}, within a process", flush=True)
        for mode, mine in zip(modes, rounds, strict=True):
            pairs = [a / b for a, b in zip(mine[::2], mine[1::2], strict=True)]
            print(f"{mode:8} {ratio_of(pairs)}", flush=True)


def window(bench: Bench) -> None:
    modes = ("bare", "closed") * 4 + ("shut",) * 2
    with ExitStack() as stack:
        processes = bench.start(modes, stack)
        before = bench.measure(processes)
        for mode, leave in (("closed", LEAVE), ("shut", 0)):
            for wanted in (RANGES | ACTIVITY | leave, RANGES | leave):
                for process in (p for p in processes if p.mode == mode):
                    process.want(wanted)
                    time.sleep(SETTLE_S)
                    for kind in bench.kinds:
                        process.step_ns(kind)
                    time.sleep(SETTLE_S)
        after = bench.measure(processes)
    for kind in bench.kinds:
        print(f"-- a window that was open, {kind}: after / before", flush=True)
        rounds: dict[str, list[tuple[list[float], list[float]]]] = defaultdict(list)
        for mode, *pair in zip(modes, before[kind], after[kind], strict=True):
            rounds[mode].append((pair[0], pair[1]))
        for mode, all_of in rounds.items():
            each = [median(b) / median(a) for a, b in all_of]
            line = f"{mode:8} {' '.join(f'{one:.4f}' for one in each)}"
            if mode != "bare":
                line += f"   / bare {_changed(all_of, rounds['bare'])}"
            print(line, flush=True)


Pairs = list[tuple[list[float], list[float]]]
"""Of each process, its rounds before and after."""


def _changed(mine: Pairs, bare: Pairs) -> str:
    """Processes are drawn anew, and rounds within each."""

    def change(processes: Pairs, source: random.Random | None) -> float:
        drawn = processes if source is None else source.choices(processes, k=len(processes))
        parts = []
        for before, after in drawn:
            if source is not None:
                before = source.choices(before, k=len(before))
                after = source.choices(after, k=len(after))
            parts.append(median(after) / median(before))
        return fmean(parts)

    again = interval(lambda source: change(mine, source) / change(bare, source), 1000)
    return f"{change(mine, None) / change(bare, None):.4f} {again}"


PARTS = {"cost": cost, "floor": floor, "window": window}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.layers, arguments.device)
        return 0
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    for part in parts:
        PARTS[part](Bench(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
