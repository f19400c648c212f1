"""A sweep that is killed, against the same sweep left alone: nothing lost, nothing twice.

    python benchmarks/sweep_kills.py OUT [--model smollm2] [--ray] [--context 32,64,128]

Three sweeps of the same grid (torch and llama.cpp, contexts × batches) in the folder OUT, each of
which goes on where an earlier call has stopped:

* ``reference``: left alone;
* ``killed``: ended with ``kill -9`` in the middle of a point, twice, and run again;
* ``ray`` (with ``--ray``): on two nodes of this host (two ``ray start``), one of which is killed
  with all its processes in the middle of a point.

Then rows are compared but for times, and the tokens of all run files. Exit status 1: a difference,
a point lost or there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests" / "support" / "stubs"),
    str(ROOT / "tests" / "support"),
]
TIMES = (
    "tok_s", "ttft_ms", "step_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms", "prefill_tok_s",
    "slowdown", "busy_ms", "idle_ms", "traced_step_ms", "load_s", "modelled_gb_s", "j_per_token",
    "sm_clock_mhz", "mem_clock_mhz", "temperature_c", "power_w", "measured_gb_s", "copy_gb_s",
)  # fmt: skip
CONDITIONS = (
    "utc",
    "load",
    "load_note",
    "throttle",
    "warnings",
    "reasons",
    "rounds",
    "llmprof_commit",
)
"""What depends on how long something took, or on which points a process had before."""


def steady(row: dict) -> dict:
    """What a sweep of the same grid must say again."""
    left = {k: v for k, v in row.items() if k not in CONDITIONS and not k.startswith(TIMES)}
    left["reasons"] = {
        k: v for k, v in (row.get("reasons") or {}).items() if not k.startswith(TIMES)
    }
    return left


def journal(folder: Path) -> list[dict]:
    try:
        lines = (folder / "points.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def start(grid: list[str], folder: Path, *more: str, **variables: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmprof", "sweep", *grid, "-o", str(folder), *more]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})


def in_a_point(folder: Path, done: int) -> bool:
    """Have ``done`` points ended, and does another one write its run?"""
    return len(journal(folder)) >= done and any(folder.glob("work/*/run.sqlite"))


def killed_twice(grid: list[str], folder: Path, count: int) -> None:
    """Each time in the middle of a point; killed or not, the last call ends it."""
    for fraction in (3, 1.5):
        wanted = int(count / fraction)
        if len(journal(folder)) >= wanted:
            continue  # an earlier call was there
        process = start(grid, folder)
        while process.poll() is None and not in_a_point(folder, wanted - 1):
            time.sleep(0.2)
        time.sleep(1.5)
        print(f"kill -9 {process.pid} after {len(journal(folder))} points", flush=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    if start(grid, folder).wait():
        raise SystemExit(f"{folder}: the resumed sweep failed")


def on_ray(grid: list[str], folder: Path) -> None:
    """Two nodes, the second killed while it has a point."""
    from ray_nodes import RayNodes

    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    short = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")
    with short, RayNodes(variables, Path(short.name) / "ray") as nodes:
        nodes.start(resources={"one": 1})
        second = nodes.start(resources={"two": 1})
        process = start(grid, folder, "--on", "ray", RAY_ADDRESS=nodes.address)

        def kill() -> None:
            while len({line["node"] for line in journal(folder)}) < 2 and process.poll() is None:
                time.sleep(0.1)
            time.sleep(3.0)
            print(f"killing the second node after {len(journal(folder))} points", flush=True)
            nodes.kill(second)

        killer = threading.Thread(target=kill)
        killer.start()
        code = process.wait()
        killer.join()
        if code:
            raise SystemExit(f"{folder}: exit status {code}")


def differences(reference: Path, other: Path, same_node: bool) -> list[str]:
    """In words, none: the same sweep up to times."""
    import pyarrow.parquet as parquet

    from llmprof.runfile.reader import RunFileReader

    wrong = []
    a, b = (parquet.read_table(f / "points.parquet").to_pylist() for f in (reference, other))
    lines = journal(other)
    if len(lines) != len({line["point_id"] for line in lines}):
        wrong.append(f"{other.name}: a point is there twice")
    if len(a) != len(b):
        wrong.append(f"{other.name}: {len(b)} rows, {len(a)} in the reference")
    for mine, its in zip(a, b, strict=False):
        one, two = (steady({k: _plain(v) for k, v in row.items()}) for row in (mine, its))
        wrong += [
            f"{other.name} {mine['point']} {mine['engine']}: {k} {two[k]!r}, not {one[k]!r}"
            for k in one
            if one[k] != two[k] and (same_node or k not in ("node",))
        ]
        decoded = []
        for folder, row in ((reference, mine), (other, its)):
            with RunFileReader(folder / row["run_file"]) as reader:
                data = reader.run_data()
            engine = next(e for e in data.engines if e.label == row["engine"])
            rounds = [r for r in data.rounds if r.engine_id == engine.engine_id and r.complete]
            decoded.append({str([t[:5] for t in r.tokens]) for r in rounds})
        if decoded[0] != decoded[1] or len(decoded[0]) != 1:
            wrong.append(f"{other.name} {mine['point']} {mine['engine']}: other tokens")
    return wrong


def _plain(value: object) -> object:
    """Maps of Arrow are lists of pairs."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--context", default="32,64,128")
    parser.add_argument("--batch", default="1,2")
    parser.add_argument("--max-time", default="6s")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument(
        "--only", choices=("reference", "killed", "ray"), help="and compare nothing"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    grid = [
        "--engine", "torch", "--engine", "llamacpp:drive=forward,binding=cyllama",
        "--model", given.model, "--context", given.context, "--batch", given.batch,
        "--decode-len", "8", "--traced-steps", "4", "--vary", f"max-time={given.max_time}",
    ]  # fmt: skip
    count = len(given.context.split(",")) * len(given.batch.split(","))
    reference = given.out / "reference"
    if given.only in (None, "reference") and start(grid, reference).wait():
        raise SystemExit("the reference failed")
    if given.only in (None, "killed"):
        killed_twice(grid, given.out / "killed", count)
    if given.only == "ray" or (given.ray and given.only is None):
        on_ray(grid, given.out / "ray")
    if given.only is not None:
        return 0
    wrong = differences(reference, given.out / "killed", True)
    if given.ray:
        wrong += differences(reference, given.out / "ray", False)
        print(f"nodes: {sorted({line['node'] for line in journal(given.out / 'ray')})}")
    for text in wrong:
        print(f"WRONG: {text}")
    rows = 2 * count
    print("FAILED" if wrong else f"{rows} rows and the tokens of all runs are the same up to times")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
