"""Where an ExLlama engine would read a folder otherwise than it is meant, and say nothing: tensors
that it leaves out, RoPE under another key, zero points of another version. Standard library only.

Sources: config.py, module.py and ext.py of exllamav2 0.3.2, model/config.py of exllamav3 1.6.5,
model.py of exllama 0.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmprof.errors import ModelError
from llmprof.models.exllama.shapes import EngineName, FormatName
from llmprof.models.huggingface.files import harmless
from llmprof.models.presets import LlamaConfig
from llmprof.models.safetensors.header import StoredTensor, only
from llmprof.plaintext import one_line

_LAYER = r"model\.layers\.\d+\."
_PROJECTION = re.compile(
    rf"(lm_head|{_LAYER}(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj))\."
    r"(weight|qweight|qzeros|scales|g_idx"
    r"|q_weight|q_scale|q_scale_max|q_groups|q_invperm|q_perm"
    r"|trellis|suh|svh|su|sv|mul1|mcg)"
)
_OTHER = re.compile(
    rf"model\.embed_tokens\.weight|model\.norm\.weight"
    rf"|{_LAYER}(input|post_attention)_layernorm\.weight"
)
_LAYER_NUMBER = re.compile(r"model\.layers\.(\d+)\.")
_EIGHTS = 0x88


def refuse_unused(shown: str, tensors: Mapping[str, StoredTensor], layers: int) -> None:
    """Raise ``ModelError`` for the first tensor that a Llama has no place for.

    ExLlama v1 passes over a bias, V2 stops at one, V3 adds it; none reads a norm of q and k. A bias
    of zeros, as old GPTQ converters wrote, is the same everywhere.
    """
    for name in tensors:
        layer = _LAYER_NUMBER.match(name)
        placed = layer is None or int(layer[1]) < layers
        if placed and (_PROJECTION.fullmatch(name) or _OTHER.fullmatch(name)):
            continue
        if harmless(name, tensors):
            continue
        raise ModelError(
            f"{shown}: tensor {one_line(name, 80)} is nothing that a Llama computes with, and"
            " config.json does not promise it"
        )


def check_labels(shown: str, raw: Mapping[str, Any], kind: FormatName, engine: EngineName) -> None:
    """Raise ``ModelError`` where ``quantization_config`` contradicts the tensors."""
    stated = raw.get("quantization_config")
    if not isinstance(stated, Mapping):
        return
    method = stated.get("quant_method")
    if kind == "gptq" and (method not in (None, "gptq") or stated.get("bits") not in (None, 4)):
        what = one_line(f"{method} of {stated.get('bits')} bits", 60)
        raise ModelError(f"{shown}: config.json says {what}, the tensors are GPTQ of 4 bits")
    if stated.get("checkpoint_format") == "gptq_v2" and engine == "exllama":
        raise ModelError(
            f"{shown}: checkpoint_format gptq_v2 stores zero points as they are; ExLlama v1 reads"
            " version 1, one less. exllamav2 reads both"
        )


def check_zeros(shown: str, raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise ``ModelError`` for a symmetric model whose zero points, all 8, are stored as 8.

    Version 1 of the format, as which it is labelled, stores 7 for them: read so, every weight is a
    level too low.
    """
    stated = raw.get("quantization_config")
    if isinstance(stated, Mapping) and stated.get("checkpoint_format") == "gptq_v2":
        return
    stored = [tensor for name, tensor in tensors.items() if name.endswith(".qzeros")]
    if stored and all(only(tensor, _EIGHTS) for tensor in stored):
        raise ModelError(
            f"{shown}: GPTQ zero points are all stored as 8, which version 1 of the format reads as"
            " 9: a symmetric model written as version 2 has it, and every weight would be a level"
            ' off; say "checkpoint_format": "gptq_v2" in quantization_config for exllamav2, or'
            " convert it"
        )


def check_rope(shown: str, raw: Mapping[str, Any], config: LlamaConfig, engine: EngineName) -> None:
    """Raise ``ModelError`` where the engine would take another RoPE from ``config.json``.

    ExLlama v1 is told by llmprof. V2 knows ``rope_theta`` and ``rope_scaling`` alone, V3 takes
    ``rope_theta`` first and ``rope_parameters`` for what is missing.
    """
    if engine == "exllama":
        return
    inside = raw.get("rope_parameters") if engine == "exllamav3" else None
    inside = inside if isinstance(inside, Mapping) else {}
    theta = raw.get("rope_theta", inside.get("rope_theta", 10000.0))
    scaling = raw.get("rope_scaling") or inside
    read = {k: v for k, v in raw.items() if k not in ("rope_parameters", "quantization_config")}
    read |= {"rope_theta": theta, "rope_scaling": {**scaling, "rope_theta": None}}
    found = LlamaConfig.from_hf(read)
    if (found.rope_theta, found.rope_scaling) != (config.rope_theta, config.rope_scaling):
        raise ModelError(
            f"{shown}/config.json: {engine} would read another RoPE from it than transformers"
            " (rope_parameters); write rope_theta and rope_scaling beside each other, as before"
            " transformers 5"
        )
