"""How long a verdict takes on a GPU, and what eight process pairs cost: one table.

    python tests/gpu/run_truth.py [--model llama2-7b] [--seconds 60]

Runs ``torch:cuda_graph=1`` against eager ``torch`` and itself: fixed 16 rounds as before, then by
precision 0.5 %, then eight process pairs. Fails where eager is not found slower, where an engine
differs from itself, or where a run takes longer than its time and a half.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(engines: list[str], options: list[str], folder: Path) -> tuple[dict, float]:
    command = [sys.executable, "-m", "llmprof", "--json", "--traced-steps", "0"]
    for number, engine in enumerate(engines):
        command += ["--engine", f"{engine}{',' if ':' in engine else ':'}label={'AB'[number]}"]
    begin = time.monotonic()
    out = folder / f"{len(list(folder.iterdir()))}.sqlite"
    done = subprocess.run(
        [*command, *options, "-o", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode or not done.stdout:
        sys.exit(f"{' '.join(command)} {options}: {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout), time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--prompt-len", default="128")
    parser.add_argument("--graph", default="torch:cuda_graph=1")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--processes", default="8")
    args = parser.parse_args()
    graph, bad = args.graph, 0
    common = ["--model", args.model, "--prompt-len", args.prompt_len]
    timed = ["--max-time", f"{args.seconds}s"]
    ways = {
        "16 rounds": ["--rounds", "16"],
        "precision 0.5 %": ["--precision", "0.5%", "--processes", "1", *timed],
        "precision 1 %": ["--precision", "1%", "--processes", "1", *timed],
        f"{args.processes} process pairs": ["--processes", args.processes, *timed],
    }
    print(f"{'pair':<12} {'way':<17} {'wall s':>7} {'load s':>7} {'pass s':>7} {'rounds':>6}"
          f" {'ended by':>9}  verdict")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        for pair, engines in (("graph/graph", [graph, graph]), ("graph/eager", [graph, "torch"])):
            for way, options in ways.items():
                found, wall = run(engines, [*common, *options], Path(name))
                result, goal = found["pairs"][0], found["workload"].get("goal", {})
                rounds = [r for e in found["engines"] for r in e["rounds"]]
                begin = min(r["start_ns"] for r in rounds)
                end = max(r["start_ns"] + r["ttft_ns"] + r["decode_ns"] for r in rounds)
                load = sum(e["load_s"] for e in found["engines"])
                share = result["process_share"]
                between = "" if share is None else f"; {share:.0%} between processes"
                print(f"{pair:<12} {way:<17} {wall:7.1f} {load:7.1f} {(end - begin) / 1e9:7.1f}"
                      f" {found['workload']['rounds']:6d} {goal.get('ended_by', ''):>9} "
                      f" {result['verdict']}{between}", flush=True)  # fmt: skip
                if pair == "graph/graph" and result["outcome"] in ("faster", "slower"):
                    bad += 1
                    print("  an engine differs from itself")
                if pair == "graph/eager" and result["outcome"] == "faster":
                    bad += 1
                    print("  eager is called faster")
                if "--max-time" in options and args.processes not in way:
                    bad += (end - begin) / 1e9 > 1.5 * args.seconds
    print("ok" if not bad else f"{bad} failures")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
