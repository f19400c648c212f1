"""What the torch engine says of itself once it is loaded. Imported late, by ``engine``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llmprof.engines.base import LoadRequest
from llmprof.engines.pytorch.attention import PLANNED, planned
from llmprof.models.locate import ModelRef
from llmprof.models.presets import LlamaConfig
from llmprof.models.weights import WeightSource, held_id
from llmprof.records import EngineInfo

if TYPE_CHECKING:
    from llmprof.engines.torch.choices import Choices


def describe(
    ref: ModelRef,
    whole: LlamaConfig,
    config: LlamaConfig,
    source: WeightSource | None,
    chosen: Choices,
    request: LoadRequest,
    collective_bytes: dict[str, int],
) -> EngineInfo:
    """``config`` is what one rank holds; ``collective_bytes`` is empty where there is one."""
    on_cuda = chosen.device.type == "cuda"
    size = chosen.torch_dtype.itemsize
    versions = {"torch": torch.__version__}
    if on_cuda:
        versions["cuda"] = str(torch.version.cuda)
    model_format, notes = f"random {chosen.dtype}", list(source.notes if source else ())
    if source is not None:
        model_format = f"{source.format} as {chosen.dtype}"
        packing = {"gguf": "GGUF", "safetensors gptq": "GPTQ"}
        for start, word in packing.items():
            if source.format.startswith(start):
                notes.append(f"{word} weights are dequantised on load: a step reads {chosen.dtype}")
    if chosen.cuda_graph:
        notes.append(
            "one CUDA graph for each 256 KV positions; attention reads to the bucket's end"
        )
    if chosen.world > 1:
        notes.append(
            f"tensor parallel over {chosen.world} ranks: sizes, bytes and matrices are rank 0's"
        )
    # The head is split by rows, the embedding is not.
    head = config.vocab_size * config.hidden_size
    step_parameters = config.step_parameters - (head - head // chosen.world)
    return EngineInfo(
        versions=versions,
        model=ref.name,
        model_format=model_format,
        parameters=whole.parameters,
        bits_per_weight=8.0 * size,
        weight_bytes_per_step=step_parameters * size,
        kv_bytes_per_token=config.kv_bytes_per_token(size),
        context_limit=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        device=_device_words(chosen),
        dtype=chosen.dtype,
        drive="forward",
        cuda_graph=chosen.cuda_graph if on_cuda else None,
        synchronous=chosen.synchronous,
        warmup_min_steps=8 if on_cuda else 2,
        warmup_lengths=_new_lengths(config, chosen),
        threads=None if on_cuda else torch.get_num_threads(),
        options=dict(request.options),
        notes=notes,
        weights_id=held_id(source.weights_id, chosen.dtype, source.format.lower().endswith("bf16"))
        if source
        else None,
        projections=_projections(config, size, chosen.world),
        op_tracer=None if on_cuda else "torch",
        ranks=chosen.world,
        collective_bytes=collective_bytes,
    )


def _new_lengths(config: LlamaConfig, chosen: Choices) -> str:
    """``EngineInfo.warmup_lengths``."""
    if chosen.cuda_graph:
        return "a CUDA graph is captured for each 256 KV positions"
    heads = config.num_key_value_heads
    group, size = config.num_attention_heads // heads, config.head_dim
    plans = planned(torch, chosen.device, chosen.torch_dtype, heads, group, size)
    return PLANNED if plans else ""


def _device_words(chosen: Choices) -> str:
    """``cuda:0``, of several ranks ``cuda:0,1``."""
    if chosen.device.type != "cuda" or chosen.world == 1:
        return str(chosen.device)
    return f"cuda:{','.join(map(str, range(chosen.world)))}"


def _projections(config: LlamaConfig, size: int, world: int) -> dict[str, list[int]]:
    """As ``llama.Layer`` holds them: q, k, v in one matrix, gate and up in one."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    both = 2 * config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.qkv_proj": (query + both, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "lm_head": (config.vocab_size // world, hidden),
    }
    return {name: [n, k, n * k * size] for name, (n, k) in shapes.items()}
