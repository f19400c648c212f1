"""Thread pools that sleep against pools that spin, while other processes want the CPUs.

    python benchmarks/crowded_pools.py [--engine torch|llamacpp] [--others N]

Starts as many busy loops as there are CPUs (or N) and runs llmprof interleaved with
``OMP_WAIT_POLICY=active`` and as it sets the workers itself (``machine.worker_variables``). Prints
tok/s of both and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

TURNS = 3
SPIN = ("OMP_WAIT_POLICY", "active")


def tok_s(engine: str, out: Path, spin: bool) -> float:
    command = [sys.executable, "-m", "llmprof", "--headless", "--json", "--engine", engine]
    command += ["--prompt-len", "8", "--decode-len", "8", "--rounds", "1", "--traced-steps", "0"]
    env = {k: v for k, v in os.environ.items() if k != SPIN[0]} | dict([SPIN] if spin else [])
    done = subprocess.run(
        [*command, "--no-host", "-o", str(out)], env=env, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)["engines"][0]["tok_s"]
    return float(found["median"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="llamacpp")
    parser.add_argument("--others", type=int, default=os.cpu_count())
    given = parser.parse_args()
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.others)
    ]
    rates: dict[bool, list[float]] = {True: [], False: []}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(TURNS):
                for spin in (True, False):
                    out = Path(folder) / f"{turn}{spin}.sqlite"
                    rates[spin].append(tok_s(given.engine, out, spin))
    finally:
        for process in others:
            process.kill()
    spinning, sleeping = median(rates[True]), median(rates[False])
    print(f"{given.engine}: spinning {spinning:.1f} tok/s, sleeping {sleeping:.1f} tok/s,"
          f" ratio {sleeping / spinning:.1f}, beside {given.others} busy loops")  # fmt: skip


if __name__ == "__main__":
    main()
