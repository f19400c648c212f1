"""A/A on this machine: the same engine twice is no difference; one made 5 % slower is one.

    python benchmarks/same_engine_twice.py --runs 20

Goals: at least 18 of 20 A/A runs without a difference, 20 of 20 with the delay seen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGIN = Path(__file__).resolve().parent.parent / "tests" / "support" / "plugin"

# Many short rounds: what disturbs a shared machine lasts longer than a pair of them.
SHORT = ["--model", "tiny", "--prompt-len", "16", "--decode-len", "16", "--rounds", "160"]


def pair(engines: list[str], folder: Path, number: int, extra: list[str]) -> dict:
    command = [sys.executable, "-m", "llmprof", "--json", "--traced-steps", "0"]
    for engine in engines:
        command += ["--engine", engine]
    command += ["--seed", str(number), "-o", str(folder / f"{len(list(folder.iterdir()))}.sqlite")]
    env = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    done = subprocess.run([*command, *extra], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["pairs"][0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--slow", default="5", help="per cent")
    parser.add_argument("extra", nargs="*", help="further llmprof options, after --")
    args = parser.parse_args()
    extra = args.extra or SHORT
    # One core for all: they are interleaved, and on a shared machine one core may be slower than
    # its neighbour for minutes, which would be a difference between two processes.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    same = seen = 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.runs):
            plain = f"torch:threads={args.threads}"
            aa = pair([plain, plain], Path(name), number, extra)
            slowed = f"slowed:threads={args.threads},slow_pct={args.slow}"
            ab = pair([plain, slowed], Path(name), number, extra)
            same += not aa["difference_seen"]
            seen += ab["difference_seen"] and ab["tok_s_ratio"]["value"] < 1
            print(f"{number:2d}  A/A {aa['verdict']:<60} A/B {ab['verdict']}", flush=True)
    print(f"A/A: no difference seen in {same} of {args.runs}; +{args.slow} %: seen in {seen}")
    return 0 if same >= 0.9 * args.runs and seen == args.runs else 1


if __name__ == "__main__":
    sys.exit(main())
