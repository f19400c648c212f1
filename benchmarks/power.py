"""A planted difference: how often is it found, in which time, and is the interval right?

    python benchmarks/power.py --runs 200

Engine B is 0.5, 1, 2 or 5 % slower, on simulated time with recorded steps; processes differ by up
to 0.5 % for life besides. ``pairs`` are process pairs; ``covers``: how many intervals hold the true
ratio (of the two processes, where there is one pair). Fails where 1 % of an H100 graph engine is
found in less than 90 % with eight pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from statistics import median

from simulated_runs import TABLES, World, simulate

from llmprof.goal import Goal
from llmprof.records import Unavailable

PLANTED = (0.005, 0.01, 0.02, 0.05)
PROCESS = 0.005
GOAL = ("H100 graph", 0.01, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--max-time", type=float, default=60.0)
    parser.add_argument("--precision", type=float, default=0.01)
    args = parser.parse_args()
    print(f"{args.runs} runs a row, {args.max_time:g} s each, seeds 0 to {args.runs - 1}")
    print("steps of    planted pairs  found  wrong   same   open  covers  median s")
    good = True
    for table in TABLES:
        for planted in PLANTED:
            for processes in (1, 8):
                seen, covered, known, times = Counter[str](), 0, 0, []
                for seed in range(args.runs):
                    goal = Goal(precision=args.precision, max_s=args.max_time, processes=processes)
                    world = World(table, slower=planted, process=PROCESS)
                    ended = simulate(world, goal, seed)
                    seen[ended.pair.outcome] += 1
                    times.append(ended.spent_s)
                    ratio = ended.pair.tok_s_ratio
                    if not isinstance(ratio.low, Unavailable):
                        known += 1
                        covered += ratio.low <= ended.truth <= ratio.high
                found = seen["slower"] / args.runs
                if (table, planted, processes) == GOAL:
                    good = found >= 0.9
                covers = f"{covered / known:7.1%}" if known else "    n/a"
                print(f"{table:<11} {planted:7.1%} {processes:5d} {found:6.0%}"
                      f" {seen['faster'] / args.runs:6.1%} {seen['same'] / args.runs:6.0%}"
                      f" {seen['inconclusive'] / args.runs:6.0%} {covers} {median(times):9.1f}",
                      flush=True)  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
