"""SmolLM2's real weights on every ExLlama generation and on torch. About four minutes on a GPU.

    python3 tests/gpu/run_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf [--keep DIR]

Prepares the weights for exllamav2 (fp16), exllamav3 (fp16, padded with zeros) and exllama v1 (GPTQ,
round-to-nearest, groups of 64), then runs two sessions of ``llmprof --headless --json``: torch with
the GGUF file beside v2 and v3 on fp16, and torch with the GPTQ weights dequantised beside v1 and v2
on the packed ones. Prints for each engine tok/s, its text, the common greedy prefix with torch, and
the kernel time without a category.

The interpreter needs torch for CUDA, numpy, safetensors, tokenizers, gguf, and the packages
exllama, exllamav2 and exllamav3 (LLMPROF_EXTENSIONS_DIR: their extensions, ready-made; see
run_exllama.py).
``--cpu`` runs torch alone over the same folders, which needs no GPU and no ExLlama package.

Exits 1 where an engine failed, a first token differs from torch's, or "other" reaches 2 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "What is the meaning of life?"
MOST_OTHER = 0.02
failed: list[str] = []


def say(ok: bool, text: str) -> None:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def llmprof(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmprof", *arguments]
    print("$ llmprof", " ".join(arguments), flush=True)
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)


def prepare(gguf: Path, folder: Path) -> dict[str, Path]:
    """Engine → its model folder."""
    made = {}
    for engine in ("exllamav2", "exllamav3", "exllama"):
        made[engine] = folder / engine
        begin = time.monotonic()
        done = llmprof(
            "model", "prepare", "--from", str(gguf), "--engine", engine, "-o", str(made[engine])
        )
        seconds = time.monotonic() - begin
        say(done.returncode == 0, f"prepare: {done.stdout.strip()} ({seconds:.0f} s)")
    return made


def session(name: str, engines: list[str], model: Path, given: argparse.Namespace) -> None:
    """One run; ``engines[0]`` is what the others are compared with."""
    file = given.keep / f"{name}.sqlite"
    arguments = ["--headless", "--json", "--prompt", given.prompt, "--model", str(model)]
    for engine in engines:
        arguments += ["--engine", engine]
    arguments += ["--decode-len", given.decode_len, "--rounds", given.rounds, "-o", str(file)]
    if not given.cpu:
        arguments += ["--trace", "kernels"]
    done = llmprof(*arguments)
    (given.keep / f"{name}.json").write_text(done.stdout)
    if not done.stdout:
        say(False, f"{name}: no report, exit code {done.returncode}")
        return
    document = json.loads(done.stdout)
    for engine in document["engines"]:
        show(f"{name} {engine['label']}", engine, given.cpu)
    for pair in document["agreement"]:
        prefix, length = pair["common_prefix"], pair["length"]
        why = pair.get("common_prefix_reason") or f"agreement {pair['agreement']:.0%}"
        text = f"{name}: {pair['a']} and {pair['b']} share {prefix} of {length} tokens, {why}"
        say(bool(prefix), text)


def show(label: str, engine: dict[str, Any], cpu: bool) -> None:
    info = engine["info"] or {}
    failure = engine["failure"]
    speed = (engine["tok_s"] or {}).get("median")
    facts = f"{info.get('model_format')}, {info.get('weight_bytes_per_step')} weight bytes a step"
    say(failure is None and speed is not None, f"{label}: {speed or failure} tok/s, {facts}")
    if info:
        print(f"     notes: {'; '.join(info['notes'])}")
        print(f"     repeats itself: {engine['determinism']}")
    print(f"     text: {engine['text']!r}")
    gpu = (engine["tracing"] or {}).get("gpu")
    if not gpu:
        say(cpu, f"{label}: no kernels: {(engine['tracing'] or {}).get('gpu_reason')}")
        return
    shares = {row["category"]: row["share"] for row in gpu["categories"]}
    other = shares.get("other", 0.0)
    listed = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    say(other < MOST_OTHER, f"{label}: other {other:.2%}, {gpu['kernels_per_step']} kernels a step")
    print(f"     {listed}")
    for kernel in gpu["kernels"]:
        if kernel.get("category") == "other":
            print(f"     other: {kernel.get('share'):.2%} {kernel.get('name')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="run files and reports go there")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--decode-len", default="64")
    parser.add_argument("--rounds", default="6")
    parser.add_argument("--cpu", action="store_true", help="torch only, on the CPU")
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="smollm2-"))
    given.keep = (given.keep or scratch).resolve()
    given.keep.mkdir(parents=True, exist_ok=True)
    gguf = given.gguf.resolve()
    try:
        made = prepare(gguf, scratch)
        if failed:
            return 1
        v1, v2, v3 = made["exllama"], made["exllamav2"], made["exllamav3"]
        if given.cpu:
            torch = "torch:device=cpu,model="
            session("fp16", [f"{torch}{m}" for m in (gguf, v2, v3)], gguf, given)
            session("gptq", [f"{torch}{v1}"], v1, given)
        else:
            torch = "torch:dtype=fp16,model="
            pair = [f"exllamav2:model={v2}", f"exllamav3:model={v3}"]
            session("fp16", [f"{torch}{gguf}", *pair], gguf, given)
            pair = [f"exllama:model={v1}", f"exllamav2:model={v1}"]
            session("gptq", [f"{torch}{v1}", *pair], v1, given)
    finally:
        if given.keep != scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    print(f"{len(failed)} failed" if failed else "all ok")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
