"""How fast CUPTI buffers decode, and how much memory a long spool takes.

    python benchmarks/decode_buffers.py [--kernels 10000000]

Goals: 2 million records a second of a buffer that alternates between kinds, and a peak below
200 MiB whatever the length of the spool (which is made on the fly, in TMPDIR, and removed).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support" / "truths"))

from cupti_synthetic import CUDA_13_0, layout_of, make_buffer

from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import Trace, decode_buffer
from llmprof.tracers.cupti.layout import (
    CONCURRENT_KERNEL,
    DRIVER,
    RUNTIME,
    SYNCHRONIZATION,
)
from llmprof.tracers.cupti.resolve import unique_references

GOAL_RATE = 2e6
GOAL_MIB = 200
BUFFER = 4 << 20
EAGER = [*[RUNTIME] * 6, DRIVER, DRIVER, RUNTIME, DRIVER, CONCURRENT_KERNEL, *[RUNTIME] * 5]
"""About what one kernel of an eager torch model leaves at ``--trace full``."""
PATTERNS = {
    "kernels only": [CONCURRENT_KERNEL],
    "alternating RUNTIME, kernel": [RUNTIME, CONCURRENT_KERNEL],
    "eager torch, full": [*EAGER, *EAGER, *EAGER, SYNCHRONIZATION],
    "RUNTIME only": [RUNTIME],
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def best_of(call: object, times: int = 7) -> float:
    laps = []
    for _ in range(times):
        begin = time.perf_counter()
        call()  # type: ignore[operator]
        laps.append(time.perf_counter() - begin)
    return min(laps)


def rates() -> bool:
    layout, met = layout_of(CUDA_13_0), True
    print(f"{'4 MiB buffer':30} {'records':>8} {'parent decodes':>16} {'worker finds names':>20}")
    for name, pattern in PATTERNS.items():
        size = sum(layout.sizes[kind] for kind in pattern)
        kinds = pattern * (BUFFER // size)
        data = make_buffer(kinds, layout)
        decode = len(kinds) / best_of(lambda data=data: decode_buffer(data, layout))
        names = len(kinds) / best_of(lambda data=data: unique_references(data, layout), 3)
        met &= decode >= GOAL_RATE
        print(f"{name:30} {len(kinds):8,} {decode / 1e6:12.1f} M/s {names / 1e6:16.1f} M/s")
    print(f"goal: {GOAL_RATE / 1e6:.0f} M/s decoded: {'met' if met else 'MISSED'}\n")
    return met


def streaming(kernels: int) -> bool:
    layout = layout_of(CUDA_13_0)
    each = BUFFER // layout.sizes[CONCURRENT_KERNEL]
    data = make_buffer([CONCURRENT_KERNEL] * each, layout)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spool"
        writer = spool.SpoolWriter(path)
        writer.write_json(spool.LAYOUT, layout.to_dict())
        for done in range(0, kernels, each):
            count = min(each, kernels - done)
            writer.write(spool.RECORDS, data[: count * layout.sizes[CONCURRENT_KERNEL]])
        writer.close()
        before, begin = peak_mib(), time.perf_counter()
        trace = Trace(path)
        found = busy = 0
        for records in trace.records():
            found += len(records.kernels)
            busy += int((records.kernels["end"] - records.kernels["start"]).sum())
        took, size = time.perf_counter() - begin, path.stat().st_size
        trace.close()
    met = found == kernels and peak_mib() < GOAL_MIB
    print(f"{found:,} kernels, {size / 1e9:.2f} GB, {busy / 1e9:.3f} s busy, in {took:.1f} s")
    print(f"peak memory {peak_mib():.0f} MiB, {before:.0f} MiB before reading")
    print(f"goal: all kernels, below {GOAL_MIB} MiB: {'met' if met else 'MISSED'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kernels", type=int, default=10_000_000)
    arguments = parser.parse_args()
    # Streaming first: the peak is the process's, and the rates below allocate more.
    streamed = streaming(arguments.kernels)
    print()
    return 0 if rates() and streamed else 1


if __name__ == "__main__":
    sys.exit(main())
