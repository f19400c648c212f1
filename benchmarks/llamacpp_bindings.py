"""Does the binding with ready wheels decode as fast as the one that is compiled?

    python benchmarks/llamacpp_bindings.py --rounds 48

Both bindings of llama.cpp in one run, interleaved round by round, on SmolLM2: tok/s of cyllama over
llama-cpp-python with its interval, for each drive. Needs both (extras llamacpp, llamacpp-source).
Goal: 0.95 or more, with an interval that reaches 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

GOAL = 0.95


def measure(drive: str, args: argparse.Namespace, folder: str) -> dict:
    command = [sys.executable, "-m", "llmprof", "--json", "--model", args.model]
    for binding in ("llama-cpp-python", "cyllama"):
        option = f"llamacpp:binding={binding},drive={drive},threads={args.threads},label={binding}"
        command += ["--engine", option]
    command += ["--rounds", str(args.rounds), "--decode-len", str(args.steps)]
    command += ["--prompt-len", "16", "--traced-steps", "0", "--seed", str(args.seed)]
    command += ["-o", str(Path(folder) / f"{drive}.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{drive}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="more than 1 spin and wait")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for drive in ("generator", "forward"):
            document = measure(drive, args, folder)
            pair = document["pairs"][0]
            ratio = pair["tok_s_ratio"]
            low, high = ratio["low"], ratio["high"]
            steps = [engine["itl_ms"]["p50"] for engine in document["engines"]]
            print(
                f"{drive:<10} cyllama / llama-cpp-python tok/s {ratio['value']:.3f}"
                f" ({low:.3f}–{high:.3f}), p50 step {steps[1]:.3f} / {steps[0]:.3f} ms;"
                f" {pair['verdict']}"
            )
            met &= ratio["value"] >= GOAL and high >= 1
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
