"""A sweep on a GPU: llama2-7b's shape, context × batch, and what the curves say of the KV cache.

    python3 tests/gpu/run_sweep.py [--wheels DIR] [--minutes 12] [--engine torch:cuda_graph=1]

Needs torch for CUDA, numpy, scipy, pyarrow; ``--wheels`` is a folder of wheels that the interpreter
lacks (platformdirs, nvidia-ml-py, nvtx): they are unpacked, nothing is installed.

Starts ``llmprof sweep``, stops it when the time is over (``--out DIR`` keeps the folder, which can
be gone on with), prints the curves, the shares of categories along them, and the fits. Exit status
1: a point failed that was not out of memory, a curve of batch 1 has no line, the line has R² below
0.95 or does not rise, or DRAM moved bytes a position that are off the model's by more than a third.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LEAST_R2 = 0.95
MOST_OFF = 1 / 3


def importable(wheels: Path | None, folder: Path) -> None:
    """llmprof of this checkout and the wheels, here and in every process that is started."""
    paths = [str(ROOT)]
    if wheels is not None:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "wheels")
        paths.append(str(folder / "wheels"))
        sys.path.append(paths[-1])
    os.environ["PYTHONPATH"] = ":".join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(":")


def longer_config(folder: Path) -> Path:
    """llama2-7b's shape with room for 32k positions; its weights are random."""
    from llmprof.models.presets import PRESETS

    shape = asdict(replace(PRESETS["llama2-7b"], max_position_embeddings=32768))
    shape.pop("rope_scaling")
    path = folder / "llama2-7b-32k" / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model_type": "llama", **shape}))
    return path


def swept(arguments: argparse.Namespace, model: Path) -> int:
    """Run the sweep, at most for the given time."""
    command = [
        sys.executable, "-m", "llmprof", "sweep", "--model", str(model),
        "--context", arguments.context, "--batch", arguments.batch,
        "--rounds", str(arguments.rounds), "--decode-len", "64", "--traced-steps", "16",
        "--bandwidth", "off", "--vary", "host-rate=0", "-o", str(arguments.out / "sweep"),
    ]  # fmt: skip
    for engine in arguments.engine or ["torch:cuda_graph=1"]:
        command += ["--engine", engine]
    print("$", *command[2:], flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(arguments.minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.wait(60)


def show(store) -> list[str]:
    """Print what was found; what is wrong with it."""
    from llmprof.sweep.curves import curves, doubts
    from llmprof.sweep.fits import fit_words

    rows = store.rows()
    wrong = [
        f"{row['fields']}: {row['reason']}"
        for row in rows
        if row["state"] == "failed" and "memory" not in row["reason"].lower()
    ]
    for row in rows:
        if row["state"] != "done":
            print(f"not run: {row['fields']['context']}×{row['fields']['batch']}: {row['reason']}")
    found = curves(rows, store.grid.axes, "context")
    print(f"\n{'curve':<34}{'context':>8}{'step ms':>9}{'interval':>18}{'tok/s':>8}{'GB/s':>7}"
          f"{'idle':>7}  shares of the traced step")  # fmt: skip
    for curve in found:
        for place in curve.places:
            parts = place.categories()
            total = sum(parts.values()) or 1.0
            shares = sorted(parts.items(), key=lambda item: -item[1])[:5]
            low, high = place.interval("step_ms") or (float("nan"),) * 2
            rate, idle = place.value("measured_gb_s"), place.value("idle_ms")
            print(
                f"{curve.label[-33:]:<34}{place.shown:>8}{place.value('step_ms'):>9.3f}"
                f"{f'{low:.3f}–{high:.3f}':>18}{place.value('tok_s'):>8.1f}"
                f"{'n/a' if rate is None else f'{rate:.0f}':>7}"
                f"{'n/a' if idle is None else f'{idle:.2f}':>7}  "
                + ", ".join(f"{name} {ms / total:.0%}" for name, ms in shares)
            )
    print()
    for text in [*doubts(found), *fit_words(found, "context")]:
        print("-", text)
    for text in fit_words(curves(rows, store.grid.axes, "batch"), "batch"):
        print("-", text)
    for curve in found:
        wrong += checked(curve)
    return wrong


def checked(curve) -> list[str]:
    """Of batch 1 only: larger batches may have lost their long contexts to the memory."""
    if curve.held.get("batch", "1") != "1":
        return []
    from llmprof.records import Unavailable
    from llmprof.sweep.fits import context_fit

    fit = context_fit(curve)
    if isinstance(fit, Unavailable):
        return [f"{curve.label}: {fit.reason}"]
    wrong = []
    if fit.line.r2 < LEAST_R2 or fit.line.b <= 0:
        wrong.append(f"{curve.label}: R² {fit.line.r2:.3f}, slope {fit.line.b:.3g}")
    model, measured = fit.model_bytes_per_position, fit.measured_bytes_per_position
    if not isinstance(measured, Unavailable) and abs(measured / model - 1) > MOST_OFF:
        wrong.append(f"{curve.label}: DRAM moved {measured:,.0f} B a position, model {model:,.0f}")
    if not any(place.categories() for place in curve.places):
        wrong.append(f"{curve.label}: no categories")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--engine", action="append", help="repeat to compare")
    parser.add_argument("--context", default="128,1k,4k,8k,16k")
    parser.add_argument("--batch", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="instead of llama2-7b's shape")
    parser.add_argument("--out", type=Path, help="kept; else a folder that is removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        importable(arguments.wheels, Path(folder))
        from llmprof.sweep.report.formats import write
        from llmprof.sweep.store import Store

        arguments.out = arguments.out or Path(folder)
        arguments.out.mkdir(parents=True, exist_ok=True)
        code = swept(arguments, arguments.model or longer_config(Path(folder)))
        store = Store.open(arguments.out / "sweep")
        ended = len(store.ended)
        print(f"exit status of the sweep {code}; {ended} of {len(store.points)} points ended")
        if not any(known.state == "done" for known in store.ended.values()):
            for known in store.ended.values():
                print(f"{known.state}: {known.reason}")
            return 1
        wrong = show(store)
        for to in ("md", "csv"):
            write(store, to, store.folder / f"report.{to}")
    for text in wrong:
        print(f"WRONG: {text}")
    print("FAILED" if wrong else "passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
