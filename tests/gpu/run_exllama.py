"""The ExLlama adapters on a real GPU: build, decode both ways, compare. A few minutes at first use.

    python3 tests/gpu/run_exllama.py --keep DIR [--engine exllamav2 …]

The interpreter needs torch for CUDA and the packages exllama, exllamav2 and exllamav3. Their
extensions are built (set MAX_JOBS and TORCH_CUDA_ARCH_LIST to taste; 16 and the GPU's own
architecture are the defaults here) and copied to DIR; a later run with LLMPROF_EXTENSIONS_DIR=DIR
finds them there and builds nothing.

Prints one line a check: free-running must equal the synchronous loop, the second round must equal
the first, the generator should equal the forward. v1 and v2 sum with atomics and random weights
have near ties, so their comparisons ask for a common prefix, not for equality.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmprof.engines.base import LoadRequest
from llmprof.engines.exllama.extension_build import keep_extension
from llmprof.engines.registry import create
from llmprof.errors import LlmprofError
from llmprof.models.exllama.shapes import FORMATS
from llmprof.models.presets import PRESETS
from llmprof.models.synth import SynthRequest, synthesise
from llmprof.workload import seeded_ids

CONFIG = PRESETS["tiny-128"]
STEPS = 300
"""More than the 205 calls after which ExLlamaV2 captures its graphs."""
PROMPT = 300
"""More than a page of the V2 and V3 caches."""
MUST_AGREE = 3
"""First tokens that two drives must share; atomics may part them later."""
failed: list[str] = []


def say(ok: bool, text: str) -> None:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def common(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def decode(engine: Any, rows: Any, steps: int) -> tuple[list[list[int]], float]:
    """Tokens of every sequence, first one included; ms a step."""
    engine.reset()
    table = [list(engine.prefill(rows))]
    begin = time.perf_counter()
    for _ in range(steps):
        row = engine.decode_step()
        if row is not None:
            table.append(list(row))
    table += [list(row) for row in engine.finish_round()]
    return [list(column) for column in zip(*table, strict=True)], (
        time.perf_counter() - begin
    ) * 1e3 / steps


def check(name: str, kind: str, model: Path, keep: Path | None, more: dict[str, str]) -> None:
    label = f"{name} {kind}" + "".join(f" {key}={value}" for key, value in more.items())
    rows = seeded_ids(PROMPT, CONFIG.vocab_size, 1, 7)
    results: dict[str, list[int]] = {}
    for drive, options in (
        ("forward", {"drive": "forward"}),
        ("free", {"drive": "forward", "sync": "0"}),
        ("generator", {"drive": "generator"}),
    ):
        engine = create(name)
        request = LoadRequest(
            model=str(model), options={**options, **more}, max_positions=PROMPT + STEPS + 1
        )
        begin = time.perf_counter()
        engine.load(request, lambda phase, share: None)
        loaded = time.perf_counter() - begin
        if keep is not None:
            keep_extension(engine.extension, engine.found_extension(), keep)
            keep = None
        info = engine.describe()
        first, _ = decode(engine, rows, STEPS)
        second, step_ms = decode(engine, rows, STEPS)
        results[drive] = second[0]
        tokens = len(second[0]) == STEPS + 1 and all(0 <= t < CONFIG.vocab_size for t in second[0])
        same = common(first[0], second[0])
        text = (
            f"{label} {drive}: load {loaded:.1f} s, {step_ms:.3f} ms a step,"
            f" graphs {info.cuda_graph}, {info.bits_per_weight:.2f} bits,"
            f" rounds agree on {same} of {STEPS + 1}, {len(set(second[0]))} different tokens"
        )
        say(tokens and same >= MUST_AGREE, text)
        engine.close()
    for other in ("free", "generator"):
        same = common(results["forward"], results[other])
        say(same >= MUST_AGREE, f"{label}: forward and {other} agree on {same} of {STEPS + 1}")


def check_batch(name: str, kind: str, model: Path) -> None:
    """Sequences of a batch decode as they do alone."""
    rows = seeded_ids(PROMPT, CONFIG.vocab_size, 2, 7)
    for drive in ("forward", "generator"):
        engine = create(name)
        request = LoadRequest(str(model), {"drive": drive}, 2, PROMPT + 33)
        try:
            engine.load(request, lambda phase, share: None)
        except LlmprofError as why:
            say("batch" in str(why), f"{name} {kind} batch 2 {drive}: refused: {why}")
            continue
        both, _ = decode(engine, rows, 32)
        engine.close()
        alone = []
        for row in rows:
            single = create(name)
            single.load(
                LoadRequest(str(model), {"drive": drive}, 1, PROMPT + 33), lambda phase, share: None
            )
            alone.append(decode(single, [row], 32)[0][0])
            single.close()
        same = [common(a, b) for a, b in zip(both, alone, strict=True)]
        say(
            min(same) >= MUST_AGREE, f"{name} {kind} batch 2 {drive}: agrees with batch 1 on {same}"
        )


def guarded(work: Any, label: str) -> None:
    try:
        work()
    except Exception as why:  # noqa: BLE001 - the next engine is still worth a try
        traceback.print_exc()
        say(False, f"{label}: {type(why).__name__}: {str(why).splitlines()[0][:300]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="copy the built extensions there")
    parser.add_argument("--engine", action="append", choices=tuple(FORMATS))
    chosen = parser.parse_args()
    os.environ.setdefault("MAX_JOBS", "16")
    import torch

    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}", flush=True)
    major, minor = torch.cuda.get_device_capability(0)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    variants: dict[str, list[dict[str, str]]] = {
        "exllama": [{}, {"fused": "0"}],
        "exllamav2": [{}, {"graphs": "0"}, {"attention": "matmul"}, {"cache": "q4"}],
        "exllamav3": [{}, {"cache": "q4"}],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name, kinds in FORMATS.items():
            if chosen.engine and name not in chosen.engine:
                continue
            keep = chosen.keep
            for kind in kinds:
                model = Path(scratch) / f"{name}-{kind}"
                bits = None if kind == "exl2" else 4
                synthesise(SynthRequest(CONFIG, name, kind, bits), model, lambda what, share: None)
                for more in variants[name] if kind == kinds[0] else [{}]:
                    guarded(
                        lambda n=name, k=kind, m=model, p=keep, o=more: check(n, k, m, p, o),
                        f"{name} {kind} {more or ''}",
                    )
                    keep = None
                guarded(
                    lambda n=name, k=kind, m=model: check_batch(n, k, m), f"{name} {kind} batch"
                )
    print(f"{len(failed)} failed" if failed else "all ok")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
