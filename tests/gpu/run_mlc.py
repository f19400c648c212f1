"""The mlc engine's vm drive on a real GPU, with a TVM that needs no compiler. About two minutes.

    python3 tests/gpu/run_mlc.py --build DIR [--arch sm_90a]     # where TVM's compiler and nvcc are
    python3 tests/gpu/run_mlc.py --libs DIR                      # on the GPU

``--build`` compiles the tiny Llama of tests/support/weights/mlc_tiny.py for the GPU, once with fp16
weights, once with q4f16_1, once for another GPU, and once for the CPU; ``--libs`` runs them. There
the interpreter needs numpy, apache-tvm (libtvm_compiler.so may be missing), apache-tvm-ffi,
platformdirs, and for the traced run what the kernel tracer needs.

Prints one line a check. ``--libs DIR --device cpu`` runs what can be run without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support" / "weights"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mlc_files
import numpy as np
import reference_llama
import small_models

from llmprof.engines.mlc.tvm import FITTING
from llmprof.errors import LlmprofError
from llmprof.models.mlc.library import inspect_library
from llmprof.models.presets import LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = LlamaConfig(128, 256, 2, 4, 2, 32, 512, 1e-5, 10000.0, 512)
"""As ``mlc_tiny.CONFIG``, which needs TVM's compiler to be imported."""
PROMPT = [int(i) for i in np.random.default_rng(11).integers(3, 500, 100)]
"""More than a chunk of 64 and more than a page."""
MUST_AGREE = 8
failed: list[str] = []


def say(ok: bool, text: str) -> None:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def guarded(work: Callable[[], None], label: str) -> None:
    try:
        work()
    except Exception as why:  # noqa: BLE001 - the next check is still worth a try
        traceback.print_exc()
        say(False, f"{label}: {type(why).__name__}: {str(why).splitlines()[0][:300]}")


def build_all(folder: Path, arch: str) -> None:
    """Each in a process of its own: TVM 0.26 crashes over some targets (fp16 for sm_80)."""
    for name in ("fp16", "q4", "other-gpu", "cpu"):
        command = [sys.executable, __file__, "--build", str(folder), "--arch", arch]
        done = subprocess.run([*command, "--only", name], check=False)
        if done.returncode:
            raise SystemExit(f"FAIL --build of {name}: exit code {done.returncode}")


def build(folder: Path, arch: str, only: str) -> None:
    import mlc_tiny

    assert mlc_tiny.CONFIG == CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    other = "sm_80" if not arch.startswith("sm_8") else "sm_90"
    for name, made in (
        ("fp16", mlc_tiny.Build(target="cuda", arch=arch, quantization="q0f16")),
        ("q4", mlc_tiny.Build(target="cuda", arch=arch, quantization="q4f16_1")),
        ("other-gpu", mlc_tiny.Build(target="cuda", arch=other, quantization="q4f16_1")),
        ("cpu", mlc_tiny.Build(quantization="q0f16")),
    ):
        if name != only:
            continue
        file = mlc_tiny.compile_library(made, folder / f"{name}.so")
        if made.target == "cuda" and not inspect_library(str(file)).binaries:
            # TVM then leaves the kernels out and says nothing.
            file.unlink()
            raise SystemExit(f"FAIL {file}: no CUDA kernels came out; TVM needs libcuda.so.1 here")
        print(f"{file}: {file.stat().st_size} bytes, {sorted(inspect_library(str(file)).binaries)}")


def hf_weights() -> dict[str, np.ndarray]:
    """Rounded to fp16, so that reference and library hold the same."""
    tensors = small_models.weights(CONFIG)
    return {name: value.astype(np.float16) for name, value in tensors.items()}


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """q, k, v in one matrix, gate and up in one (as ``mlc_tiny.weights_from_hf``)."""
    found = dict(tensors)
    for layer in range(CONFIG.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        qkv = [found.pop(f"{prefix}self_attn.{n}_proj.weight") for n in "qkv"]
        pair = [found.pop(f"{prefix}mlp.{n}_proj.weight") for n in ("gate", "up")]
        found[f"{prefix}self_attn.qkv_proj.weight"] = np.concatenate(qkv)
        found[f"{prefix}mlp.gate_up_proj.weight"] = np.concatenate(pair)
    return found


def quantised(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """q4f16_1 of all matrices but the embedding table: (HF names for the reference, MLC's)."""
    for_reference, packed = {}, {}
    for name, value in tensors.items():
        if value.ndim == 1 or "embed" in name:
            for_reference[name] = packed[name] = value
            continue
        groups = value.astype(np.float32).reshape(value.shape[0], -1, 32)
        scale = (np.abs(groups).max(-1, keepdims=True) / 7).astype(np.float16)
        codes = np.clip(np.rint(groups / np.maximum(scale, 1e-6)) + 7, 0, 14)
        plain = (codes - 7) * scale.astype(np.float32)
        for_reference[name] = plain.reshape(value.shape)
        nibbles = codes.astype(np.uint32).reshape(value.shape[0], -1, 8)
        words = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(-1).astype(np.uint32)
        key = name.removesuffix("weight")
        packed[f"{key}q_weight"], packed[f"{key}q_scale"] = words, scale[..., 0]
    joined = {}
    for part in ("q_weight", "q_scale"):
        some = {n: v for n, v in packed.items() if n.endswith(part)}
        renamed = {n.removesuffix(part) + "weight": v for n, v in some.items()}
        joined |= {n.removesuffix("weight") + part: v for n, v in fused(renamed).items()}
    joined |= {n: v for n, v in packed.items() if not n.endswith(("q_weight", "q_scale"))}
    return for_reference, joined


def common(a: list[int], b: list[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def check_library(
    label: str, lib: Path, weights: Path, reference: dict[str, np.ndarray], device: str
) -> None:
    options = {"lib": str(lib), "drive": "vm", "device": device}
    engine = mlc_files.load(weights, positions=200, **options)
    info = engine.describe()
    say(
        info.device.startswith(device),
        f"{label}: {info.model_format} on {info.device}, graphs {info.cuda_graph},"
        f" {info.bits_per_weight} bits, {'; '.join(info.notes)}",
    )
    if device == "cuda":
        say(bool(info.cuda_graph), f"{label}: the library captures CUDA graphs")
    wanted = reference_llama.logits(CONFIG, reference, PROMPT[:60])[-1]
    found = engine.drive.logits([PROMPT[:60]])[0]  # type: ignore[attr-defined]
    worst = float(np.abs(found - wanted).max())
    say(worst < 0.05, f"{label}: logits differ from the numpy reference by at most {worst:.4f}")
    first = mlc_files.decode(engine, [PROMPT], 64)[0]
    again = mlc_files.decode(engine, [PROMPT], 64)[0]
    say(first == again, f"{label}: two rounds agree on {common(first, again)} of 65 tokens")
    ids = list(PROMPT)
    for _ in range(16):
        ids.append(int(reference_llama.logits(CONFIG, reference, ids)[-1].argmax()))
    same = common(first, ids[len(PROMPT) :])
    say(same >= MUST_AGREE, f"{label}: {same} of 16 greedy tokens are the reference's")
    rows = [PROMPT[n : n + 40] for n in (0, 20, 40)]
    engine.close()
    together = mlc_files.decode(mlc_files.load(weights, batch=3, **options), rows, 20)
    alone = [mlc_files.decode(mlc_files.load(weights, **options), [r], 20)[0] for r in rows]
    shared = [common(a, b) for a, b in zip(together, alone, strict=True)]
    say(min(shared) >= MUST_AGREE, f"{label}: a batch of 3 agrees with batch 1 on {shared} of 21")
    ranged = mlc_files.decode(mlc_files.load(weights, phases="1", **options), rows[:1], 20)
    say(ranged == alone[:1], f"{label}: the same tokens with phases=1")


def check_refused(label: str, wanted: str, lib: Path, weights: Path, **options: str) -> None:
    try:
        mlc_files.load(weights, lib=str(lib), drive="vm", **options)
    except LlmprofError as why:
        say(wanted in str(why), f"{label}: refused: {why}")
    else:
        say(False, f"{label}: was not refused")


def check_command(lib: Path, weights: Path, device: str, scratch: Path) -> None:
    """The whole command with kernels traced."""
    command = [
        *(sys.executable, "-m", "llmprof", "--headless", "--json"),
        *("--engine", f"mlc:drive=vm,lib={lib},model={weights},device={device}"),
        *("--trace", "kernels", "--prompt-len", "64", "--decode-len", "48", "--rounds", "3"),
        *("--traced-steps", "24", "-o", str(scratch / "run.sqlite")),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path}
    )
    say(done.returncode == 0, f"command: exit code {done.returncode} {done.stderr[-600:]!r}")
    engine = json.loads(done.stdout)["engines"][0]
    print(f"     tok/s {engine.get('tok_s')}, slowdown {engine['tracing'].get('slowdown')}")
    gpu = engine["tracing"].get("gpu")
    if device == "cpu":
        say(gpu is None, f"command: no kernels on a CPU: {engine['tracing'].get('gpu_reason')}")
        return
    if gpu is None:
        say(False, f"command: no kernels: {engine['tracing'].get('gpu_reason')}")
        return
    say(
        gpu["attribution"] != "none" and all(c["ok"] for c in gpu["checks"] if "ok" in c),
        f"command: kernels attributed by {gpu['attribution']}: {gpu['attribution_reason']}",
    )
    say(
        (gpu["kernels_per_step"] or 0) > 10,
        f"command: {gpu['kernels_per_step']} kernels and {gpu['launches_per_step']} launches a"
        f" step, busy {gpu['busy_ms_per_step']} of {gpu['wall_ms_per_step']} ms",
    )
    graph = graph_kernels(scratch / "run.sqlite")
    say(graph[0] > 0, f"command: {graph[0]} of {graph[1]} kernels ran inside CUDA graphs")
    shares = {c["category"]: round(c["share"], 4) for c in gpu["categories"]}
    say("quantised GEMV/GEMM" in shares and "attention" in shares, f"command: {shares}")
    other = [k["name"] for k in gpu["kernels"] if k["category"] == "other"]
    say(not other, f"command: kernels without a category: {other}")
    for kernel in gpu["kernels"]:
        print(f"     {kernel['category']:24} {kernel['count_per_step']!s:>6} {kernel['name'][:80]}")


def graph_kernels(file: Path) -> tuple[int, int]:
    import sqlite3

    with sqlite3.connect(file) as database:
        return database.execute(
            "SELECT count(graphNodeId), count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL"
        ).fetchone()


def check_no_compiler() -> None:
    """A TVM without its compiler: here by its own switch, if the file is there."""
    import tvm
    import tvm_ffi

    found = (tvm.__version__, tvm_ffi.__version__)
    say(found == FITTING, f"apache-tvm {found[0]} with apache-tvm-ffi {found[1]}")
    say(bool(tvm.base._RUNTIME_ONLY), "TVM runs without libtvm_compiler.so")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, help="compile the libraries there")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--only", help="build this one")
    parser.add_argument("--libs", type=Path, help="run the libraries that are there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    chosen = parser.parse_args()
    if chosen.build:
        if chosen.only:
            build(chosen.build, chosen.arch, chosen.only)
        else:
            build_all(chosen.build, chosen.arch)
        return
    if chosen.libs is None:
        parser.error("give --build DIR or --libs DIR")
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
    libs, device = chosen.libs.resolve(), chosen.device
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tensors = hf_weights()
        plain = mlc_files.write_folder(scratch / "fp16", fused(tensors))
        for_reference, packed = quantised(tensors)
        small = mlc_files.write_folder(scratch / "q4", packed)
        on_gpu = device == "cuda"
        fp16 = libs / ("fp16.so" if on_gpu else "cpu.so")
        guarded(lambda: check_library("fp16", fp16, plain, tensors, device), "fp16")
        if on_gpu:
            guarded(lambda: check_library("q4", libs / "q4.so", small, for_reference, "cuda"), "q4")
            guarded(
                lambda: check_refused(
                    "library for another GPU", "compute capability", libs / "other-gpu.so", small
                ),
                "other GPU",
            )
            guarded(
                lambda: check_refused(
                    "library for the CPU", "another device", libs / "cpu.so", plain, device="cuda"
                ),
                "CPU library",
            )
        guarded(
            lambda: check_refused(
                "weights of another quantisation", "expects", fp16, small, device=device
            ),
            "other weights",
        )
        guarded(check_no_compiler, "TVM")
        command_lib = libs / "q4.so" if on_gpu else fp16
        guarded(
            lambda: check_command(command_lib, small if on_gpu else plain, device, scratch),
            "command",
        )
    print(f"{len(failed)} failed" if failed else "all ok")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
