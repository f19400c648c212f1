"""``llmprof --help`` against ``python -c pass``, interleaved. Goal: within 3×.

python benchmarks/cold_start.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> int:
    bare = [sys.executable, "-c", "pass"]
    full = [sys.executable, "-m", "llmprof", "--help"]
    seconds(full)  # compiles the byte code
    pairs = [(seconds(bare), seconds(full)) for _ in range(30)]
    ratio = statistics.median(b / a for a, b in pairs)
    bare_ms, full_ms = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"python -c pass {bare_ms:.1f} ms, llmprof --help {full_ms:.1f} ms, ratio {ratio:.2f}")
    return 0 if ratio <= 3 else 1


if __name__ == "__main__":
    sys.exit(main())
