"""A/A: one engine against itself. How often is a difference reported, and does the interval hold 1?

    python benchmarks/false_positives.py [--table "H100 graph"]

Simulated time, recorded steps; real runs are in ``same_engine_twice.py``.

Three worlds (nothing else, a CPU hog that comes and goes, processes that differ by up to 0.7 %
for life) and one that a single process pair cannot tell from a difference (all of B's processes
0.7 % slower), each with one process pair, with eight and with ``auto``, for every recorded step
distribution. ``made``: process pairs, on average. ``covers``: how many intervals hold the true
ratio (of the two processes, where there is one pair). Fails where more than 5 % of a series are
called different, where the exact 95 % interval of that share (Clopper and Pearson, Biometrika 26,
1934) reaches 12 %, or where less than 93 or more than 97 % of the intervals hold the truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import mean

from scipy.stats import beta
from simulated_runs import TABLES, World, series, started

from llmprof.goal import Goal

WORLDS = {
    "nothing else": {},
    "a hog that comes and goes": {"hog": True},
    "processes differ by up to 0.7 %": {"process": 0.007},
    "every process of B 0.7 % slower": {"fixed_process": 0.007},
}
PAIRS = (1, 8, None)
MOST, MOST_BOUND = 0.05, 0.12
LEAST_COVERAGE, MOST_COVERAGE = 0.93, 0.97


def exact(count: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share."""
    low = 0.0 if not count else float(beta.ppf(0.025, count, of - count + 1))
    return low, 1.0 if count == of else float(beta.ppf(0.975, count + 1, of - count))


def simulated(tables: Sequence[str], runs: int, first: int, max_s: float) -> bool:
    good = True
    print(f"{runs} runs a series, {max_s:g} s each, seeds {first} to {first + runs - 1}")
    print(f"{'steps of':<10} {'world':<31} {'pairs':>5} {'made':>4} {'false':>5} {'bound':>5}"
          f" {'same':>4} {'open':>4} {'covers':>6} {'mean s':>6}")  # fmt: skip
    for table in tables:
        for name, changes in WORLDS.items():
            for pairs in PAIRS:
                if pairs != 1 and "fixed_process" in changes:
                    continue  # 0.7 % of every process is a difference of the engines then
                world = started(World(table, **changes), pairs)
                found = series(
                    world, Goal(max_s=max_s, processes=pairs), range(first, first + runs)
                )
                false = found.share("faster", "slower")
                _, bound = exact(round(false * runs), runs)
                covers = LEAST_COVERAGE <= found.coverage <= MOST_COVERAGE
                ok = false <= MOST and bound < MOST_BOUND and covers
                good &= ok
                print(f"{table:<10} {name:<31} {pairs or 'auto':>5} {mean(found.pairs):4.1f}"
                      f" {false:5.1%} {bound:5.1%} {found.share('same'):4.0%}"
                      f" {found.share('inconclusive'):4.0%} {found.coverage:6.1%}"
                      f" {mean(found.spent_s):6.1f}{'' if ok else '  missed'}",
                      flush=True)  # fmt: skip
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--table", action="append", choices=list(TABLES), help="all, unless given")
    parser.add_argument("--max-time", type=float, default=60.0)
    args = parser.parse_args()
    tables = args.table or list(TABLES)
    return 0 if simulated(tables, args.runs, args.first_seed, args.max_time) else 1


if __name__ == "__main__":
    sys.exit(main())
