"""Why the GPU waits, on a real GPU: eager torch against CUDA-graph torch, with host stacks.

    python3 tests/gpu/run_host.py [--trace kernels|full] [--model llama2-7b]

Needs llmprof importable and py-spy on PATH or beside the interpreter. Exits 1 where the causes do
not add up to the idle time, or where there are none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--trace", default="kernels")
    parser.add_argument("--engine", action="append")
    parser.add_argument("--steps", default="64")
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args()
    command = [sys.executable, "-m", "llmprof", "--headless", "--json", "--model", given.model]
    for engine in given.engine or ["torch", "torch:cuda_graph=1"]:
        command += ["--engine", engine]
    command += ["--trace", given.trace, "--traced-steps", given.steps, "--decode-len", given.steps]
    done = subprocess.run([*command, *given.rest], stdout=subprocess.PIPE, cwd=ROOT, check=False)
    document = json.loads(done.stdout)
    good = True
    for engine in document["engines"]:
        tracing = engine["tracing"]
        print(f"\n{engine['label']}: slowdown {tracing['slowdown']}")
        host, causes = tracing["host"], tracing["gap_causes"]
        if host is None or causes is None:
            print("  n/a:", tracing.get("host_reason"), tracing.get("gap_causes_reason"))
            good = False
            continue
        print(" ", host["sampler"], host["samples"], "samples in steps")
        print(" ", host["verdict"])
        print(" ", causes["verdict"])
        print(f"  [{causes['basis']}, {causes['samples']} samples in gaps]")
        for cause in causes["causes"]:
            print(f"    {cause['cause']:<14}{cause['ms_per_step']:9.4f} ms {cause['share']:6.1%}")
        idle = tracing["gpu"]["idle_ns"]
        total = sum(cause["total_ns"] for cause in causes["causes"])
        print(f"  sum of causes {total} ns, idle time {idle} ns, off by {total - idle}")
        good = good and total == idle
        for frame in host["frames"][:8]:
            print(
                f"    {frame['self_share']:6.1%} {frame['inclusive_share']:6.1%} {frame['frame']}"
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
