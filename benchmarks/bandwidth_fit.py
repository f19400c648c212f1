"""What the fit of DRAM samples to kernels costs, and how that grows.

python3 benchmarks/bandwidth_fit.py [--kernels 1000000] [--samples 300000]

Fits a made-up recording of a tenth of the size and one of the whole size in processes of their own,
and prints seconds, peak memory beyond the recording itself, and the ratio of both; then a tenth
again with as many threads as BLAS takes by itself, which a fit does not let it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests" / "support"),
    str(ROOT / "tests" / "support" / "made_traces"),
]

NAMES = 30
"""Kernels of different names and shapes, as a decode step has."""


def one(kernels: int, samples: int, threads: bool) -> None:
    from contextlib import nullcontext

    from llmprof.analysis.bandwidth.fit import kernel_fit
    from llmprof.analysis.bandwidth.fit.design import Activity
    from llmprof.analysis.bandwidth.fit.grouping import grouped
    from llmprof.analysis.bandwidth.fit.kernel_fit import KernelFit, Samples, fit

    if threads:
        kernel_fit.one_thread = nullcontext
    rng = np.random.default_rng(0)
    lengths = np.r_[rng.integers(1_200, 4_000, NAMES - 10), rng.integers(6_000, 60_000, 10)]
    level = np.r_[np.zeros(NAMES - 10), rng.uniform(20, 90, 10)]
    layer = rng.permutation(np.repeat(np.arange(NAMES), 2))
    key = np.resize(layer, kernels)
    length = np.maximum(1, lengths[key] * (1 + 0.02 * rng.standard_normal(kernels))).astype(int)
    # As many kernels under a sample as asked for: idle time stretches the recording to fit.
    interval = 200_000
    idle = max(400, int(samples * interval / kernels - length.mean()))
    gap = rng.integers(idle // 2, idle * 3 // 2, kernels)
    start = np.cumsum(length + gap) - length
    end = start + length
    edges = np.arange(start[0], end[-1], interval)[: samples + 1]
    knots = np.column_stack((start, start + length // 2)).ravel().astype(float)
    run = np.cumsum(level[key] * lengths[key])  # a slower launch moves the same bytes
    integral = np.interp(edges, knots, np.column_stack((np.r_[0, run[:-1]], run)).ravel())
    value = np.diff(integral) / interval + 0.1 * rng.standard_normal(len(edges) - 1)
    groups = grouped(key.astype(np.int64), start, end)
    activity = Activity(start, end, groups.group, len(groups.base))
    pm = Samples(
        edges[:-1], edges[1:], value, np.zeros(len(value), np.int64), np.empty((len(value), 0))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    found = fit(activity, pm, groups.parent)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not isinstance(found, KernelFit):
        sys.exit(found.reason)
    print(
        json.dumps(
            {
                "kernels": kernels,
                "samples": len(value),
                "seconds": round(seconds, 2),
                "cpu_seconds": round(cpu, 2),
                "mib": round((after - before) / 1024, 1),
                "r2": round(found.r2, 5),
                "part_ns": found.part_ns,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernels", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("--threads", action="store_true", help="BLAS as it likes (with --one)")
    given = parser.parse_args()
    if given.one:
        one(given.kernels, given.samples, given.threads)
        return
    found = []
    for part, flags in ((10, []), (1, []), (10, ["--threads"])):
        sizes = ["--kernels", str(given.kernels // part), "--samples", str(given.samples // part)]
        done = subprocess.run(
            [sys.executable, __file__, "--one", *sizes, *flags],
            check=True,
            capture_output=True,
            text=True,
        )
        print(done.stdout, end="", flush=True)
        found.append(json.loads(done.stdout))
    small, large, free = found
    ratio = large["cpu_seconds"] / small["cpu_seconds"]
    print(f"ten times the size: {ratio:.1f} times the processor time")
    ratio = free["cpu_seconds"] / small["cpu_seconds"]
    print(f"with BLAS's own threads: {ratio:.1f} times the processor time of one")


if __name__ == "__main__":
    main()
