"""``config.json`` as Hugging Face and the ExLlama engines read it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmprof.models.presets import LlamaConfig, RopeScaling
from llmprof.models.safetensors.header import sampled_id
from llmprof.plaintext import one_line

CONFIG = "config.json"
OURS = "llmprof"
"""Key of what llmprof says about a model that it made; loaders ignore it."""
_COSMETIC = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    OURS,
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Keys that change nothing that is computed."""
_NOTES = ("quantisation", "padding")
"""What of it an engine's description repeats."""


def our_notes(document: Mapping[str, Any]) -> list[str]:
    """Printable lines about how llmprof made the model of this ``config.json``, if it did."""
    ours = document.get(OURS)
    texts = [ours.get(key) for key in _NOTES] if isinstance(ours, Mapping) else []
    return [one_line(text, 200) for text in texts if isinstance(text, str)]


def weights_id(document: Mapping[str, Any], files: Sequence[Path]) -> str:
    """Equal for two folders that hold the same weights and say the same of how to compute.

    A folder that ``llmprof model prepare`` made says whose weights it holds; of any other the files
    are sampled.

    Args:
        document: its ``config.json``.
        files: its safetensors (``files.weight_files``).
    """
    ours = document.get(OURS)
    known = ours.get("weights_id") if isinstance(ours, Mapping) else None
    if isinstance(known, str):
        return one_line(known, 200)
    told = {key: value for key, value in document.items() if key not in _COSMETIC}
    return sampled_id(list(files), json.dumps(told, sort_keys=True))


def config_json(
    config: LlamaConfig,
    *,
    token_ids: Mapping[str, int],
    quantization: Mapping[str, Any] | None,
    ours: Mapping[str, Any],
) -> dict[str, Any]:
    """The document for a model whose output head is stored on its own (never tied).

    Args:
        token_ids: ``bos_token_id`` and the like; ExLlama v1 wants bos, eos and pad.
        quantization: ``quantization_config``; ``None`` for fp16.
        ours: under the key ``llmprof``: where the weights come from.
    """
    document: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling(config.rope_scaling),
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        **token_ids,
    }
    if quantization is not None:
        document["quantization_config"] = dict(quantization)
    document[OURS] = dict(ours)
    return document


def gptq_config(group_size: int) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group_size,
        "desc_act": False,
        "sym": False,
        "checkpoint_format": "gptq",
    }


def rope_before_5(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same Llama with its RoPE under the keys that older readers know: ``rope_theta`` and
    ``rope_scaling``, not ``rope_parameters``. Other documents as they are."""
    if document.get("model_type") != "llama" or not document.get("rope_parameters"):
        return dict(document)
    config = LlamaConfig.from_hf({k: v for k, v in document.items() if k != "quantization_config"})
    told = {k: v for k, v in document.items() if k != "rope_parameters"}
    return told | {
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling(config.rope_scaling),
    }


def _scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    fields = asdict(scaling)
    kind = fields.pop("kind")
    if kind == "linear":
        return {"rope_type": kind, "factor": scaling.factor}
    return {"rope_type": kind, **fields}
