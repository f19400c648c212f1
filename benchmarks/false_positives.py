"""A/A: one engine against itself. How often is a difference reported, and does the interval hold 1?

    python benchmarks/false_positives.py --runs 200            simulated time, recorded steps
    python benchmarks/false_positives.py --runs 0 --real 20    real runs of an engine of known step

Three worlds (nothing else, a CPU hog that comes and goes, processes that differ by up to 0.7 %
for life) and one that a single process pair cannot tell from a difference (all of B's processes
0.7 % slower), each with one process pair and with eight, for every recorded step distribution.
``covers``: how many intervals hold the true ratio (of the two processes, where there is one pair).
The promise is 5 %, so a series of 200 may well have 11. Fails where the exact 95 % interval of the
share of false differences (Clopper and Pearson, Biometrika 26, 1934) lies above 5 %, or reaches
12 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from scipy.stats import beta
from simulated_runs import TABLES, World, simulate

from llmprof.goal import Goal
from llmprof.records import Unavailable

PLUGIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "plugin"
WORLDS = {
    "nothing else": {},
    "a hog that comes and goes": {"hog": True},
    "processes differ by up to 0.7 %": {"process": 0.007},
    "every process of B 0.7 % slower": {"fixed_process": 0.007},
}
MOST, MOST_BOUND = 0.05, 0.12


def exact(count: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share."""
    low = 0.0 if not count else float(beta.ppf(0.025, count, of - count + 1))
    return low, 1.0 if count == of else float(beta.ppf(0.975, count + 1, of - count))


def simulated(runs: int, max_s: float) -> bool:
    good = True
    print(f"{runs} runs a series, {max_s:g} s each, seeds 0 to {runs - 1}")
    print(f"{'steps of':<11} {'world':<32} {'pairs':>5} {'false':>6} {'bound':>6} {'same':>5}"
          f" {'open':>5} {'covers':>7} {'mean s':>7}")  # fmt: skip
    for table in TABLES:
        for name, changes in WORLDS.items():
            for processes in (1, 8):
                if processes == 8 and "fixed_process" in changes:
                    continue  # 0.7 % of every process is a difference of the engines then
                seen, covered, known, spent = Counter[str](), 0, 0, 0.0
                for seed in range(runs):
                    goal = Goal(max_s=max_s, processes=processes)
                    ended = simulate(World(table, **changes), goal, seed)
                    seen[ended.pair.outcome] += 1
                    spent += ended.spent_s
                    ratio = ended.pair.tok_s_ratio
                    if not isinstance(ratio.low, Unavailable):
                        known += 1
                        covered += ratio.low <= ended.truth <= ratio.high
                false = seen["faster"] + seen["slower"]
                low, bound = exact(false, runs)
                ok = low <= MOST and bound < MOST_BOUND
                good &= ok
                covers = f"{covered / known:7.1%}" if known else "    n/a"
                print(f"{table:<11} {name:<32} {processes:5d} {false / runs:6.1%} {bound:6.1%}"
                      f" {seen['same'] / runs:5.0%} {seen['inconclusive'] / runs:5.0%} {covers}"
                      f" {spent / runs:7.1f}{'' if ok else '  too many'}", flush=True)  # fmt: skip
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
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--max-time", type=float, default=60.0)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--real-time", type=float, default=5.0)
    parser.add_argument("--slow", type=float, default=5.0, help="per cent, of the real A/B")
    args = parser.parse_args()
    good = simulated(args.runs, args.max_time) if args.runs else True
    if args.real:
        good &= real(args.real, args.real_time, args.slow)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
