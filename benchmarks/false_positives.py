"""A/A: one engine against itself. How often is a difference reported, and does the interval hold 1?

    python benchmarks/false_positives.py                       simulated time, recorded steps
    python benchmarks/false_positives.py --runs 0 --real 20    real runs of an engine of known step

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
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from scipy.stats import beta
from simulated_runs import TABLES, World, series, started

from llmprof.goal import Goal

PLUGIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "plugin"
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


def real(runs: int, max_s: float, slow_pct: float) -> bool:
    """An engine of a known step against itself, and against one ``slow_pct`` slower."""
    seen: dict[str, Counter[str]] = {"A/A": Counter(), "A/B": Counter()}
    slow = round(1000 * (1 + slow_pct / 100))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            for series, step in (("A/A", 1000), ("A/B", slow)):
                command = [sys.executable, "-m", "llmprof", "--json", "--traced-steps", "0"]
                command += ["--engine", "fake:step_us=1000,label=a"]
                command += ["--engine", f"fake:step_us={step},label=b", "--prompt-len", "8"]
                command += ["--max-time", f"{max_s:g}s", "--processes", "1", "--seed", str(number)]
                command += ["-o", f"{folder}/{series[-1]}{number}.sqlite"]
                env = {**os.environ, "PYTHONPATH": str(PLUGIN)}
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                pair = json.loads(done.stdout)["pairs"][0]
                seen[series][pair["outcome"]] += 1
                print(f"{number:2d} {series} {pair['verdict']}", flush=True)
    false = seen["A/A"]["faster"] + seen["A/A"]["slower"]
    print(
        f"real, {runs} runs of {max_s:g} s: A/A {dict(seen['A/A'])},"
        f" +{slow_pct:g} % {dict(seen['A/B'])}"
    )
    return false <= max(1, MOST * runs) and not seen["A/B"]["faster"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--table", action="append", choices=list(TABLES), help="all, unless given")
    parser.add_argument("--max-time", type=float, default=60.0)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--real-time", type=float, default=5.0)
    parser.add_argument("--slow", type=float, default=5.0, help="per cent, of the real A/B")
    args = parser.parse_args()
    tables = args.table or list(TABLES)
    good = True
    if args.runs:
        good = simulated(tables, args.runs, args.first_seed, args.max_time)
    if args.real:
        good &= real(args.real, args.real_time, args.slow)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
