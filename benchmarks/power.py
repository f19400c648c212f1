"""A planted difference: how often is it found, in which time, and is the interval right?

    python benchmarks/power.py

Engine B is 0.5, 1, 2 or 5 % slower, on simulated time with recorded steps; processes differ by up
to 0.5 % for life besides. ``pairs`` are process pairs, ``made`` of them on average; ``covers``: how
many intervals hold the true ratio (of the two processes, where there is one pair). Fails where 1 %
of an H100 graph engine is found in less than 90 % with eight pairs or ``auto``, where the slower
engine is called faster in more than 2.5 %, or where less than 93 or more than 97 % of the intervals
hold the truth.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean, median

from false_positives import LEAST_COVERAGE, MOST_COVERAGE, PAIRS
from simulated_runs import TABLES, World, series, started

from llmprof.goal import Goal

PLANTED = (0.005, 0.01, 0.02, 0.05)
PROCESS = 0.005
LEAST_FOUND = 0.9
"""Of ``GOAL``, in 60 s."""
GOAL = [("H100 graph", 0.01, 8), ("H100 graph", 0.01, None)]
MOST_WRONG = 0.025


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--max-time", type=float, default=60.0)
    parser.add_argument("--precision", type=float, default=0.01)
    parser.add_argument("--table", action="append", choices=list(TABLES), help="all, unless given")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.runs)
    print(f"{args.runs} runs a row, {args.max_time:g} s each, seeds {seeds[0]} to {seeds[-1]}")
    print(f"{'steps of':<10} {'planted':>7} {'pairs':>5} {'made':>4} {'found':>6} {'wrong':>5}"
          f" {'same':>4} {'open':>4} {'covers':>6} {'median s':>8} {'most s':>6}")  # fmt: skip
    good = True
    for table in args.table or TABLES:
        for planted in PLANTED:
            for pairs in PAIRS:
                world = started(World(table, slower=planted, process=PROCESS), pairs)
                goal = Goal(precision=args.precision, max_s=args.max_time, processes=pairs)
                found = series(world, goal, seeds)
                ok = LEAST_COVERAGE <= found.coverage <= MOST_COVERAGE
                ok &= found.share("faster") <= MOST_WRONG
                if (table, planted, pairs) in GOAL:
                    ok &= found.share("slower") >= LEAST_FOUND
                good &= ok
                print(f"{table:<10} {planted:7.1%} {pairs or 'auto':>5} {mean(found.pairs):4.1f}"
                      f" {found.share('slower'):6.1%} {found.share('faster'):5.1%}"
                      f" {found.share('same'):4.0%} {found.share('inconclusive'):4.0%}"
                      f" {found.coverage:6.1%} {median(found.spent_s):8.1f}"
                      f" {max(found.spent_s):6.1f}{'' if ok else '  missed'}",
                      flush=True)  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
