"""Bytes a launch of the products of real engines, against the sizes of their weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from checks import AIM, ROOT, guarded, say, summed
from extensions import Extensions

from llmprof.models.presets import PRESETS

LAYERS = 8
"""Of the quantised models: a launch reads what it reads in one of 32, and loading takes less."""
SHAPE = PRESETS["llama2-7b"]
PROMPT, DECODE = 64, 200
PRODUCTS = ("GEMM/GEMV", "quantised GEMV/GEMM")
OVER = 0.05
"""Of the step: what has to meet its weights."""
SMALLEST_MB = 4.0


def torch(folder: Path) -> None:
    options = ["--model", "llama2-7b", "--engine", "torch:device=cuda,dtype=fp16,cuda_graph=1"]
    (engine,) = run(options, folder / "torch.sqlite")
    products("torch, Llama-2-7B fp16 in a CUDA graph", engine, 32)


def quantised(folder: Path, library: Path | None, extensions: Extensions) -> None:
    """MLC's format in TVM where a library is given, ExLlama v1 and v2 where they are there; a run
    of its own each, while extensions are still being built."""
    config = folder / "config.json"
    config.write_text(json.dumps(shape()))
    exllamav2 = ["--config", str(config), "--engine", "exllamav2", "--format"]
    if library is not None:
        vocabulary = str(SHAPE.vocab_size)
        model = weights(
            folder / "q4f16_1", ["--engine", "mlc", "--lib", str(library), "--vocab", vocabulary]
        )
        measured(folder, "mlc-vm", f"mlc:drive=vm,lib={library},model={model}")
    if extensions.packages:
        gptq = weights(folder / "gptq", [*exllamav2, "gptq"])
        exl2 = weights(folder / "exl2", [*exllamav2, "exl2"])
    if extensions.built("exllama"):
        measured(folder, "v1-gptq", f"exllama:model={gptq}")
    if extensions.built("exllamav2"):
        measured(folder, "v2-gptq", f"exllamav2:model={gptq}")
        measured(folder, "v2-exl2", f"exllamav2:model={exl2}")


def weights(folder: Path, options: list[str]) -> Path:
    """A folder of random weights, made unless it is there."""
    if not folder.exists():
        begin = time.monotonic()
        command = [sys.executable, "-m", "llmprof", "model", "synth", *options, "-o", str(folder)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        print(f"({folder.name}: weights in {time.monotonic() - begin:.0f} s)", flush=True)
    return folder


def measured(folder: Path, label: str, engine: str) -> None:
    def work(folder: Path) -> None:
        (found,) = run(["--engine", f"{engine},label={label}"], folder / f"{label}.sqlite")
        products(f"{label}, {LAYERS} layers of Llama-2-7B", found, LAYERS)

    guarded(label, work, folder)


def shape() -> dict[str, Any]:
    """``config.json`` of the shape with fewer layers."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": SHAPE.hidden_size,
        "intermediate_size": SHAPE.intermediate_size,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": SHAPE.num_attention_heads,
        "num_key_value_heads": SHAPE.num_key_value_heads,
        "vocab_size": SHAPE.vocab_size,
        "rms_norm_eps": SHAPE.rms_norm_eps,
        "rope_theta": SHAPE.rope_theta,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def run(options: list[str], out: Path) -> list[dict[str, Any]]:
    """One llmprof; its engines, of the JSON document."""
    command = [
        sys.executable, "-m", "llmprof", "--headless", "--json", "--prompt-len", str(PROMPT),
        "--decode-len", str(DECODE), "--rounds", "2", "--no-host", *options, "-o", str(out),
    ]  # fmt: skip
    out.unlink(missing_ok=True)
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    print(f"\nllmprof took {time.monotonic() - begin:.0f} s, exit code {done.returncode}")
    if done.returncode:
        print(done.stderr[-4000:])
    document = json.loads(done.stdout)
    if os.environ.get("OUT"):
        Path(os.environ["OUT"], f"{out.stem}.json").write_text(done.stdout)
    return list(document["engines"])


def products(label: str, engine: dict[str, Any], layers: int) -> None:
    """The table of one engine, and its checks."""
    print(f"\n### {label}\n")
    tracing = engine.get("tracing") or {}
    found = tracing.get("dram_per_kernel")
    if found is None:
        why = tracing.get("dram_per_kernel_reason") or engine.get("failure")
        say(False, f"{label}: no fit: {why}")
        return
    print(json.dumps({k: v for k, v in found.items() if k not in ("kernels", "headroom")}), "\n")
    print(found["headroom"] and found["headroom"]["words"], "\n")
    summed(label, found["fitted_gb_s"], found["mean_gb_s"])
    sizes: dict[float, list[str]] = {}
    for name, (_, _, n_bytes) in (engine["info"]["projections"] or {}).items():
        sizes.setdefault(round(n_bytes / 1e6, 3), []).append(name.rpartition(".")[2])
    print(
        "| kernel | after | a step | µs | share | weights | weights, MB | measured, MB | 95 % |"
        " error | of the copy | GB/s along it |\n|" + "---|" * 12
    )
    launches: Counter[float] = Counter()
    for kernel in found["kernels"][:24]:
        measured = kernel["mb_per_launch"]
        large = (measured or 0) > SMALLEST_MB and kernel["category"] in PRODUCTS
        size = min(sizes, key=lambda s: abs(s - measured)) if large and sizes else None
        error = None if size is None else measured / size - 1
        known = "n/a | " + str(kernel.get("note", "")) if measured is None else (
            f"{measured:.2f} | {kernel['low_mb']:.2f}–{kernel['high_mb']:.2f}")  # fmt: skip
        print(
            f"| {kernel['short_name'][:44]} {kernel['grid']} | {kernel['after'][:20]} |"
            f" {kernel['launches_per_step']:.1f} | {kernel['median_ns'] / 1e3:.1f} |"
            f" {kernel['share']:.1%} | {'' if size is None else ', '.join(sizes[size])} |"
            f" {'' if size is None else format(size, '.2f')} | {known} |"
            f" {'' if error is None else f'{error:+.2%}'} |"
            f" {'n/a' if kernel['of_ceiling'] is None else format(kernel['of_ceiling'], '.0%')} |"
            f" {' '.join(f'{v:.0f}' for v in kernel['profile_gb_s'])} |"
        )
        if size is None:
            continue
        launches[size] += kernel["launches_per_step"]
        if kernel["share"] > OVER:
            name = ", ".join(sizes[size])
            say(abs(error) <= AIM, f"{label}: {name}: {error:+.2%} of {size:.2f} MB")
            held = kernel["low_mb"] <= size <= kernel["high_mb"]
            say(held, f"{label}: {name}: the interval holds the weights")
    for size, names in sizes.items():
        due = sum(1 if name == "lm_head" else layers for name in names)
        met = launches[size]
        say(abs(met / due - 1) < 0.1, f"{label}: {size:.2f} MB: {met:.1f} of {due} launches a step")
