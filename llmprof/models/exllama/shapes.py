"""Which Llama shapes each ExLlama engine can hold in which format, and why not. Standard library.

The limits are those of the kernels: none of the engines checks all of them itself, and some write
past a buffer instead. Sources are named at each rule (exllama 0.1.0, exllamav2 0.3.2,
exllamav3 1.6.5).
"""

from __future__ import annotations

from typing import Literal

from llmprof.models.presets import LlamaConfig

EngineName = Literal["exllama", "exllamav2", "exllamav3"]
FormatName = Literal["gptq", "exl2", "exl3", "fp16"]

FORMATS: dict[EngineName, tuple[FormatName, ...]] = {
    "exllama": ("gptq",),
    "exllamav2": ("exl2", "gptq", "fp16"),
    "exllamav3": ("exl3", "fp16"),
}
"""What each engine loads; the first is what synth makes unless told otherwise."""
V3_MULTIPLE = 128
"""What hidden_size must be a multiple of for exllamav3."""
GROUP_SIZES = (128, 64, 32)
"""GPTQ rows a scale: the v2 kernels take 32 rows at a time and powers of two."""


def projections(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Short name → (k inputs, n outputs) of a layer's projections."""
    shapes = {}
    for name, shape in config.layer_shapes().items():
        if len(shape) == 2:
            shapes[name.removesuffix(".weight")] = (shape[1], shape[0])
    return shapes


def misfit(
    config: LlamaConfig, engine: EngineName, kind: FormatName, group_size: int = 128
) -> str | None:
    """Why ``engine`` cannot hold this shape in this format; ``None`` where it can.

    Args:
        group_size: GPTQ rows a scale; 0 where each column has one scale.
    """
    if kind not in FORMATS[engine]:
        return f"{engine} does not load {kind}, it loads {' and '.join(FORMATS[engine])}"
    reasons = {
        "exllama": lambda: _v1(config, group_size),
        "exllamav2": lambda: _v2(config, kind, group_size),
        "exllamav3": lambda: _v3(config),
    }
    return reasons[engine]()


def best_group_size(config: LlamaConfig) -> int | None:
    """The largest GPTQ group that divides every projection's inputs."""
    for size in GROUP_SIZES:
        if _undivided(config, size) is None:
            return size
    return None


def v1_rope_covers(head_dim: int, half2: bool) -> bool:
    """Does v1's rotary kernel reach the whole head?

    Its grid is rounded down (rope.cu: ``(head_dim + 31) / 32 / 2 / (half2 ? 2 : 1)`` blocks of 32
    threads, each turning two of head_dim / 2 columns), so that a small head gets no block at all.
    """
    blocks = (head_dim + 31) // 32 // 2 // (2 if half2 else 1)
    return head_dim % 4 == 0 and blocks * 64 >= head_dim // 2


def _v1(config: LlamaConfig, group_size: int) -> str | None:
    if group_size % 8:
        return f"ExLlama v1 takes GPTQ groups in multiples of 8, not {group_size}"
    if config.num_attention_heads * config.head_dim != config.hidden_size:
        return "ExLlama v1 needs heads × head_dim = hidden_size"  # model.py, ExLlamaConfig
    if not v1_rope_covers(config.head_dim, half2=False):
        return f"ExLlama v1's rotary kernel does not handle heads of {config.head_dim}"
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "linear":
        return f"ExLlama v1 has no {scaling.kind} rope scaling"
    return _gptq(config, group_size)


def _v2(config: LlamaConfig, kind: FormatName, group_size: int) -> str | None:
    if kind == "gptq":
        if group_size and (group_size < 32 or group_size & (group_size - 1)):
            # q_matrix.cu finds the size by doubling, q_gemm_kernel_gptq.cuh takes 32 rows a time
            return f"exllamav2 takes GPTQ groups of 32, 64, 128 …, not {group_size}"
        return _gptq(config, group_size)
    for name, (k, n) in projections(config).items():
        # linear.py pads outputs to 32 but the next projection's inputs not; q_gemm_kernel.cuh
        # takes 32 rows at a time.
        for side, size in (("inputs", k), ("outputs", n)):
            if size % 32:
                return f"{name} has {size} {side}; exllamav2 needs a multiple of 32"
    return None


def _v3(config: LlamaConfig) -> str | None:
    # linear.py pads outputs to 128, mlp.py does not trim those of down_proj (attn.py does trim
    # its own), and they are added to a residual that is not padded: seen with SmolLM2-135M (576)
    # as "size of tensor a (576) must match the size of tensor b (640)".
    if config.hidden_size % V3_MULTIPLE:
        return (
            f"exllamav3 needs a hidden_size in multiples of {V3_MULTIPLE}, not"
            f" {config.hidden_size}; llmprof model prepare pads real fp16 weights with zeros"
        )
    # attention_fn/dispatch.py; other sizes are padded (linear.py).
    if config.head_dim > 512:
        return f"exllamav3's attention handles heads up to 512, not {config.head_dim}"
    return None


def _gptq(config: LlamaConfig, group_size: int) -> str | None:
    for name, (_, n) in projections(config).items():
        if n % 32:  # q4_matmul.cu assumes it; v2's shuffle and int4 loads too
            return f"{name} has {n} outputs; GPTQ kernels need a multiple of 32"
    bad = _undivided(config, group_size or 32)  # rows are packed and unpacked 32 at a time
    if bad is None:
        return None
    best = best_group_size(config)
    hint = f"; group size {best} fits" if best else "; no group size of 32, 64 or 128 fits"
    name, k = bad
    return f"{name} has {k} inputs, which groups of {group_size or 32} do not divide{hint}"


def _undivided(config: LlamaConfig, group_size: int) -> tuple[str, int] | None:
    for name, (k, _) in projections(config).items():
        if k % group_size:
            return name, k
    return None
