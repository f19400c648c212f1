"""Real A/A and A/B on this machine: two processes of one engine, and one that is slowed.

    python benchmarks/same_engine_twice.py --runs 20

Every run is the command line itself, timed only: ``torch`` with the model ``tiny``, against itself
and against one that waits ``--slow`` per cent of each step besides. Fails where more than 5 % of
the A/A runs (one of twenty) are called different, or where the slowed engine is called faster.
``--goal`` options (after ``--``) replace the default ``--max-time 12s``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PLUGIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "plugin"
DEFAULT = ["--max-time", "12s", "--processes", "1"]


def pair(engines: list[str], folder: Path, number: int, options: list[str]) -> dict:
    command = [sys.executable, "-m", "llmprof", "--json", "--traced-steps", "0"]
    for engine in engines:
        command += ["--engine", engine]
    command += ["--seed", str(number), "-o", str(folder / f"{len(list(folder.iterdir()))}.sqlite")]
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {**found["pairs"][0], "rounds": found["workload"]["rounds"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="of each of both series")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--engine", default="torch:threads=1")
    parser.add_argument("--slow", type=float, default=10.0, help="per cent; 0: no A/B")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("goal", nargs="*", default=DEFAULT, help="further options, after --")
    args = parser.parse_args()
    # One core for all: they are interleaved, and on a shared machine one core may be slower than
    # its neighbour for minutes, which would be a difference between two processes.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    seen: dict[str, Counter[str]] = {"A/A": Counter(), "A/B": Counter()}
    series = {"A/A": args.engine}
    if args.slow:
        series["A/B"] = f"slowed:threads=1,slow_pct={args.slow:g}"
    common = ["--model", args.model, "--prompt-len", "16"]
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.first, args.first + args.runs):
            for kind, other in series.items():
                begin = time.monotonic()
                found = pair([args.engine, other], Path(name), number, [*common, *args.goal])
                seen[kind][found["outcome"]] += 1
                print(f"{number:3d} {kind} {time.monotonic() - begin:5.1f} s"
                      f" {found['rounds']:4d} rounds  load {os.getloadavg()[0]:4.1f} "
                      f" {found['verdict']}", flush=True)  # fmt: skip
    different = seen["A/A"]["faster"] + seen["A/A"]["slower"]
    for kind in series:
        print(f"{kind}: {dict(seen[kind])}")
    return 0 if different <= 0.05 * args.runs and not seen["A/B"]["faster"] else 1


if __name__ == "__main__":
    sys.exit(main())
