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
        "| kernel | share | µs | a step | weights | weights, MB | read, MB | 95 % | error |"
        " written, MB | of a copy | GB/s along it |\n|" + "---|" * 12
    )
    launches: Counter[float] = Counter()
    for kernel in found["kernels"]:
        measured = moved(kernel, found)
        if measured is None or kernel["category"] not in PRODUCTS or not sizes:
            continue
        read, half, written = measured
        if read < SMALLEST_MB:
            continue
        size = min(sizes, key=lambda s: abs(s - read))
        alike = next(c for c in clusters(sorted(sizes)) if size in c)
        name = ", ".join(n for s in alike for n in sizes[s])
        error = read / size - 1
        print(
            f"| {kernel['short_name'][:44]} {kernel['grid']} | {kernel['share']:.1%} |"
            f" {kernel['median_ns'] / 1e3:.1f} | {kernel['launches_per_step']:.1f} | {name} |"
            f" {size:.2f} | {read:.2f} | {read - half:.2f}–{read + half:.2f} | {error:+.2%} |"
            f" {'n/a' if written is None else format(written, '.2f')} |"
            f" {'n/a' if kernel['of_ceiling'] is None else format(kernel['of_ceiling'], '.0%')} |"
            f" {' '.join(f'{v:.0f}' for v in kernel['profile_gb_s'])} |"
        )
        launches[size] += kernel["launches_per_step"]
        if kernel["share"] > OVER:
            say(abs(error) <= AIM, f"{label}: {name}: {error:+.2%} of {size:.2f} MB")
            held = abs(size - read) <= half
            say(held, f"{label}: {name}: the interval holds the weights")
    for alike in clusters(sorted(sizes)):
        due = sum(1 if n == "lm_head" else layers for size in alike for n in sizes[size])
        met = sum(launches[size] for size in alike)
        text = " or ".join(f"{size:.2f}" for size in alike)
        say(abs(met / due - 1) < 0.1, f"{label}: {text} MB: {met:.1f} of {due} launches a step")


def moved(
    kernel: dict[str, Any], found: dict[str, Any]
) -> tuple[float, float, float | None] | None:
    """MB that a launch reads, half of the interval, MB that it writes (``None``: not counted).

    Weights are read. Where reads are not counted apart, all traffic is taken for them.
    """
    if kernel["mb_per_launch"] is None:
        return None
    half = (kernel["high_mb"] - kernel["low_mb"]) / 2
    scale = found["spec_gb_s"] / 100 * kernel["median_ns"] / 1e6
    further = kernel["further_pct"]
    read, written = (further.get(f"dram_{kind}_pct") for kind in ("read", "write"))
    if read is None:
        return kernel["mb_per_launch"], half, None
    return read * scale, half, None if written is None else written * scale


def clusters(sizes: list[float]) -> list[list[float]]:
    """Sizes that no measurement tells apart together."""
    found: list[list[float]] = []
    for size in sizes:
        if found and size < found[-1][-1] * (1 + AIM):
            found[-1].append(size)
        else:
            found.append([size])
    return found


def again(file: Path, layers: int) -> None:
    """Tables of a run that is there, fitted by this version."""
    command = [sys.executable, "-m", "llmprof", "--json", "--from", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for engine in json.loads(done.stdout)["engines"]:
        products(f"{file.stem}: {engine['label']}", engine, layers)
