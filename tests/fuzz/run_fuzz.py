"""Fuzz the readers for as long as you like, led by coverage (atheris, which is libFuzzer).

    python tests/fuzz/run_fuzz.py --seconds 600 nsys kineto          # pip install atheris
    python tests/fuzz/run_fuzz.py --runs 1000000 nvtx
    python tests/fuzz/run_fuzz.py --keep nsys                        # the corpus, made smaller

Half of the changes know the format (``support/truths/fuzz_inputs.py``), half are libFuzzer's own.
An input fails that raises anything but an error of llmprof's, lets a control character through,
takes longer than 10 s, or more memory than 1 GiB in all. It is left in ``--crashes``; what reaches
new code in ``--corpus``, of which ``--keep`` puts the smallest that cover it into
``tests/fixtures/fuzz``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / "support"
sys.path[:0] = [str(SUPPORT / folder) for folder in ("", "made_traces", "truths")]
MOST_KEPT, MOST_BYTES = 40, 48_000
"""Files, and packed bytes, that ``--keep`` leaves of a target's corpus."""
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-verbosity=1", "-print_final_stats=1")


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["llmprof"]):
        import fuzz_inputs
        import fuzz_targets

    target = fuzz_targets.TARGETS[name]

    def one(data: bytes) -> None:
        target.run(data, folder)

    def change(data: bytes, most: int, seed: int) -> bytes:
        by = random.Random(seed)
        if by.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return fuzz_inputs.changed(bytes(data), by, most)

    atheris.Setup([sys.argv[0], *options], one, custom_mutator=change)
    atheris.Fuzz()


def run(name: str, arguments: argparse.Namespace) -> bool:
    import fuzz_inputs
    import fuzz_targets

    corpus = arguments.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(fuzz_inputs.corpus(name)):
        (corpus / f"seed-{number}").write_bytes(data)
    arguments.crashes.mkdir(parents=True, exist_ok=True)
    options = [*LIMITS, f"-max_len={fuzz_targets.TARGETS[name].max_len}", f"-runs={arguments.runs}"]
    options += [
        f"-max_total_time={arguments.seconds}",
        f"-artifact_prefix={arguments.crashes}/{name}-",
    ]
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm") as folder:
        began = time.monotonic()
        done = _child(name, folder, [*options, str(corpus)])
        took = time.monotonic() - began
    facts = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    covered = re.findall(r"cov: (\d+)", done.stderr)
    print(
        f"{name:9} {int(facts.get('number_of_executed_units', 0)):>9,} inputs {took:6.0f} s"
        f"  slowest {facts.get('slowest_unit_time_sec', '?')} s"
        f"  peak {facts.get('peak_rss_mb', '?')} MiB"
        f"  branches {covered[0] if covered else '?'} → {covered[-1] if covered else '?'}"
        f"  {'ok' if done.returncode == 0 else 'FAILED'}",
        flush=True,
    )
    if done.returncode:
        print("\n".join([*done.stdout.splitlines()[-40:], *done.stderr.splitlines()[-5:]]))
    return done.returncode == 0


def keep(name: str, arguments: argparse.Namespace) -> None:
    """Of all that was found, the smallest inputs that cover what all of them cover."""
    import fuzz_inputs

    seeds = set(fuzz_inputs.seeds(name))
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm") as folder:
        small, found = Path(folder) / "small", arguments.corpus / name
        small.mkdir()
        done = _child(
            name, folder, [*LIMITS, "-merge=1", "-max_len=1048576", str(small), str(found)]
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        inputs = sorted((p.read_bytes() for p in small.iterdir()), key=lambda d: (len(d), d))
    target = fuzz_inputs.CORPUS / name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("[0-9]*.gz"):  # those named found-N once failed
        old.unlink()
    kept = size = 0
    for data in inputs:
        packed = gzip.compress(data, 9, mtime=0)
        if data in seeds or kept == MOST_KEPT or size + len(packed) > MOST_BYTES:
            continue
        (target / f"{kept:02}.gz").write_bytes(packed)
        kept, size = kept + 1, size + len(packed)
    print(f"{name:9} kept {kept} of {len(inputs)} inputs, {size:,} bytes")


def _child(name: str, folder: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, __file__, "--child", name, folder, *options],
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return 0
    import fuzz_targets

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=", ".join(fuzz_targets.TARGETS)
    )
    parser.add_argument("--seconds", type=int, default=0, help="of each target; 0: no limit")
    parser.add_argument("--runs", type=int, default=-1, help="inputs of each target")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"))
    parser.add_argument("--crashes", type=Path, default=Path("build/fuzz/crashes"))
    parser.add_argument("--keep", action="store_true", help="make the kept corpus from --corpus")
    arguments = parser.parse_args()
    names = arguments.targets or list(fuzz_targets.TARGETS)
    if unknown := set(names) - set(fuzz_targets.TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    if arguments.keep:
        for name in names:
            keep(name, arguments)
        return 0
    if arguments.seconds == 0 and arguments.runs < 0:
        parser.error("for how long? --seconds or --runs")
    passed = [run(name, arguments) for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
