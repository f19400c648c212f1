"""Device-to-device copy bandwidth of one GPU, five measurements: how well does it repeat?

python benchmarks/copy_bandwidth.py [DEVICE]
"""

from __future__ import annotations

import sys

from llmprof.records import Unavailable
from llmprof.tracers.copy_bandwidth import measure_copy_bandwidth


def main() -> int:
    device = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for _ in range(5):
        found = measure_copy_bandwidth(device)
        if isinstance(found, Unavailable):
            print(f"n/a: {found.reason}", file=sys.stderr)
            return 1
        print(f"{found.gb_s:.0f} GB/s (best of {found.repetitions}: {found.best_gb_s:.0f} GB/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
