"""A sweep on a GPU: llama2-7b's shape, context × batch, and what the curves say of the KV cache.

    python3 tests/gpu/run_sweep.py --out DIR [--wheels DIR] [--minutes 6] [--engines torch]

Engines: torch with CUDA graphs in fp16, exllamav2 with EXL2 weights of 4 bits; both random. Needs
torch for CUDA, numpy, scipy, pyarrow, for exllamav2 its package (LLMPROF_EXTENSIONS_DIR where its
extension is built already); ``--wheels`` is a folder of wheels that the interpreter lacks: they
are unpacked, nothing is installed. DIR/sweep is the sweep's folder, which the same command goes on
with; DIR/small has what is worth carrying home (some 10 MB). ``--from SMALL`` goes on with what
another machine brought home; those points have no run file here.

Runs ``llmprof sweep``, stops it when the time is over, prints the curves, the shares of categories
along them, the fits and what loads were shared, then decodes one point again on fresh loads. Exit
status 1: a point failed that was not out of memory, no load was shared, torch's tokens differ on a
fresh load, torch's curve of batch 1 has no line, the line has R² below 0.95 or does not rise, DRAM
moved bytes a position that are off the model's by more than a third, or a place of a curve has no
categories. Lines of ExLlamaV2 are not judged: some 200 launches a step take as long as the host's
CPU makes them, and on a shared machine that changes by half within seconds.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LEAST_R2 = 0.95
MOST_OFF = 1 / 3
MUST_AGREE = 3
"""First tokens that exllamav2 must repeat: it sums with atomics, and random weights have ties."""


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


def made_models(given: argparse.Namespace) -> Path:
    """The shape with room for 32k positions, as a config.json and as an EXL2 folder beside it."""
    from llmprof.models.presets import PRESETS

    shape = asdict(replace(PRESETS[given.preset], max_position_embeddings=32768))
    shape.pop("rope_scaling")
    folder = given.models / f"{given.preset}-32k"
    path = folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model_type": "llama", **shape}))
    exl2 = given.models / f"{given.preset}-32k-exl2"
    if "exllamav2" in given.engines and not exl2.exists():
        begin = time.monotonic()
        command = [sys.executable, "-m", "llmprof", "model", "synth", "--config", str(path),
                   "--engine", "exllamav2", "--format", "exl2", "-o", str(exl2)]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
        print(f"EXL2 weights written in {time.monotonic() - begin:.0f} s", flush=True)
    return path


def grid(given: argparse.Namespace, model: Path, how: dict, path: Path) -> str:
    """The grid as a file. All contexts of a batch come first: a cut leaves whole curves."""
    engines = []
    for engine in given.engines.split(","):
        if engine == "exllamav2":
            folder = model.parent.with_name(f"{model.parent.name}-exl2")
            engines.append(f"exllamav2:drive=forward,{given.exllamav2},model={folder}")
        elif engine == "torch":
            engines.append("torch:cuda_graph=1" if given.gpu else "torch")
        else:
            engines.append(engine)
    fields = {"model": str(model), "decode-len": given.decode_len, "max-time": given.max_time,
              "bandwidth": "off", "host-rate": 0, **how}  # fmt: skip
    lines = [f"engine = {json.dumps(engines)}", "[fields]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def swept(grid_file: str, folder: Path, minutes: float, *more: str) -> int:
    """Run a sweep, at most for the given time."""
    print(Path(grid_file).read_text())
    command = [sys.executable, "-m", "llmprof", "sweep", grid_file, "-o", str(folder), *more]
    print("$", *command[2:], flush=True)
    begin = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    print(f"exit status {code} after {time.monotonic() - begin:.0f} s", flush=True)
    return code


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
            bounds = place.interval("step_ms")
            interval = "n/a" if bounds is None else f"{bounds[0]:.3f}–{bounds[1]:.3f}"
            rate, idle = place.value("measured_gb_s"), place.value("idle_ms")
            step, tok_s = place.value("step_ms"), place.value("tok_s")
            if step is None or tok_s is None:
                continue
            print(
                f"{curve.label[-33:]:<34}{place.shown:>8}{step:>9.3f}"
                f"{interval:>18}{tok_s:>8.1f}"
                f"{'n/a' if rate is None else f'{rate:.0f}':>7}"
                f"{'n/a' if idle is None else f'{idle:.2f}':>7}  "
                + ", ".join(f"{name} {ms / total:.0%}" for name, ms in shares)
            )
    print()
    for text in [*doubts(found), *fit_words(found, "context")]:
        print("-", text)
    for text in fit_words(curves(rows, store.grid.axes, "batch"), "batch"):
        print("-", text)
    print()
    for point in store.points:
        ended = store.ended.get(point.point_id)
        if ended is not None:
            words = ", ".join(f"{r['engine']} {r['load']}" for r in ended.rows)
            print(f"{point.words}: {ended.state}, {ended.seconds:.1f} s; loads: {words}")
    for curve in found:
        wrong += checked(curve)
        without = [place.shown for place in curve.places if not place.categories()]
        if without:
            wrong.append(f"{curve.label}: no categories at {', '.join(without)}")
    if len(store.ended) > 1 and not any(row.get("load") == "shared" for row in rows):
        wrong.append("no load was shared")
    return wrong


def checked(curve) -> list[str]:
    """Of torch at batch 1 only: larger batches may have lost their long contexts to the memory."""
    if curve.held.get("batch", "1") != "1" or not curve.engine.startswith("torch"):
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
    return wrong


def decoded(store) -> dict[tuple[str, ...], list[list[int]]]:
    """(context, batch, engine) → tokens of the first timing round of points that ended."""
    from llmprof.runfile.reader import RunFileReader

    found = {}
    for point in store.points:
        path = store.run_file(point)
        if path is None or not path.is_file():
            continue
        with RunFileReader(path) as reader:
            data = reader.run_data()
        for engine in data.engines:
            rounds = data.rounds_of(engine.engine_id, "timing")
            if rounds and rounds[0].complete:
                key = point.fields["context"], point.fields["batch"], engine.label
                found[key] = rounds[0].tokens
    return found


def same_tokens(shared, fresh) -> list[str]:
    """What differs between points on a shared load and the same points on fresh ones."""
    wrong = []
    ours, theirs = decoded(shared), decoded(fresh)
    for key in sorted(ours.keys() & theirs.keys()):
        pairs = list(zip(ours[key], theirs[key], strict=True))
        whole = min(min(len(a), len(b)) for a, b in pairs)
        agree = min(
            next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), whole)
            for a, b in pairs
        )
        print(f"{' · '.join(key)}: shared and fresh load agree on {agree} of {whole} tokens")
        if agree < (MUST_AGREE if key[2].startswith("exllama") else whole):
            wrong.append(f"{key}: tokens part after {agree}")
    if not ours.keys() & theirs.keys():
        wrong.append("no point to compare a fresh load with")
    return wrong


def bring_home(store, small: Path) -> None:
    """Columns, journal, and three run files, compressed: the first, the last, and the longest
    context of the first batch."""
    small.mkdir(parents=True, exist_ok=True)
    for name in ("sweep.json", "points.jsonl", "points.parquet", "report.md", "report.csv"):
        if (store.folder / name).is_file():
            shutil.copy(store.folder / name, small / name)
    runs = sorted((store.folder / "runs").glob("*.sqlite"))
    with_run = [p for p in store.points if store.run_file(p) in runs]
    batch = with_run[0].fields["batch"] if with_run else ""
    longest = [p for p in with_run if p.fields["batch"] == batch][-1:]
    for point in {p.point_id: p for p in [*with_run[:1], *longest, *with_run[-1:]]}.values():
        data = store.run_file(point).read_bytes()
        (small / f"{point.point_id}.sqlite.xz").write_bytes(lzma.compress(data, preset=2))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0, help="of the sweep")
    parser.add_argument("--engines", default="torch,exllamav2")
    parser.add_argument("--context", default="128,1k,4k,16k")
    parser.add_argument("--batch", default="1,2,4,8")
    parser.add_argument("--max-time", default="8s", help="of a point")
    parser.add_argument(
        "--decode-len", type=int, default=96,
        help="steps a round: DRAM is measured in rounds that decode for 0.2 s and more",
    )  # fmt: skip
    parser.add_argument(
        "--exllamav2", default="cudnn_attention=0", metavar="OPTIONS",
        help="cuDNN makes a plan for each KV length, 45 ms each: a minute or two of a sweep",
    )  # fmt: skip
    parser.add_argument("--preset", default="llama2-7b")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "sweep-models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path, metavar="SMALL")
    parser.add_argument("--no-fresh", action="store_true", help="leave the fresh loads out")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        importable(given.wheels, Path(folder))
        import torch

        from llmprof.sweep.report.formats import write
        from llmprof.sweep.store import Store

        given.gpu = torch.cuda.is_available()
        given.out.mkdir(parents=True, exist_ok=True)
        sweep = given.out / "sweep"
        if given.source is not None and not sweep.exists():
            (sweep / "runs").mkdir(parents=True)
            for name in ("sweep.json", "points.jsonl"):
                shutil.copy(given.source / name, sweep / name)
        model = made_models(given)
        shape = {"batch": given.batch, "context": given.context, "traced-steps": 16}
        asked = grid(given, model, shape, given.out / "grid.toml")
        code = swept(asked, sweep, given.minutes)
        store = Store.open(sweep)
        ended = len(store.ended)
        print(f"exit status of the sweep {code}; {ended} of {len(store.points)} points ended")
        if not any(known.state == "done" for known in store.ended.values()):
            for known in store.ended.values():
                print(f"{known.state}: {known.reason}")
            return 1
        wrong = show(store)
        for to in ("md", "csv"):
            (sweep / f"report.{to}").unlink(missing_ok=True)
            write(store, to, sweep / f"report.{to}")
        bring_home(store, given.out / "small")
        shared = [p for p in store.points if any(
            row.get("load") == "shared" for row in getattr(store.ended.get(p.point_id), "rows", ()))
        ]  # fmt: skip
        if shared and not given.no_fresh:
            fields, fresh = shared[0].fields, given.out / "fresh"
            shape = {"batch": fields["batch"], "context": fields["context"], "traced-steps": 0}
            shutil.rmtree(fresh, ignore_errors=True)
            asked = grid(given, model, shape, given.out / "fresh.toml")
            swept(asked, fresh, 1.5, "--loads", "fresh")
            wrong += same_tokens(store, Store.open(fresh))
    for text in wrong:
        print(f"WRONG: {text}")
    print("FAILED" if wrong else "passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
