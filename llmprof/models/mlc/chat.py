"""The files beside the weights that MLC LLM's engine insists on. Standard library only."""

from __future__ import annotations

import math
from typing import Any

from llmprof.models.mlc.metadata import MlcMetadata
from llmprof.models.presets import LlamaConfig

MAX_STAND_IN = 1 << 20
"""Words that a stand-in tokenizer has at most."""


def chat_config(library: MlcMetadata, shape: LlamaConfig | None, vocab_size: int) -> dict[str, Any]:
    """``mlc-chat-config.json``: what protocol/mlc_chat_config.py and cpp/serve/config.cc need.

    Args:
        shape: of a preset, where one is known; the engine gets along without.
    """
    limits = {
        "context_window_size": library.context_window_size or -1,
        "prefill_chunk_size": library.prefill_chunk_size,
        "tensor_parallel_shards": library.tensor_parallel_shards,
        "pipeline_parallel_stages": library.pipeline_parallel_stages,
        "max_batch_size": library.max_batch_size,
    }
    model: dict[str, Any] = {"vocab_size": vocab_size, **limits}
    if shape is not None:
        model |= {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "rms_norm_eps": shape.rms_norm_eps,
            "position_embedding_base": int(shape.rope_theta),
        }
    return {
        "version": "0.1.0",
        "model_type": library.model_type,
        "quantization": library.quantization,
        "model_config": model,
        "vocab_size": vocab_size,
        "active_vocab_size": vocab_size,
        **limits,
        "sliding_window_size": library.sliding_window_size or -1,
        "attention_sink_size": -1,
        "temperature": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "top_p": 1.0,
        "tokenizer_files": ["tokenizer.json"],
        "tokenizer_info": {
            "token_postproc_method": "byte_fallback",
            "prepend_space_in_encode": False,
            "strip_space_in_decode": False,
        },
        "conv_template": {
            "name": "LM",
            "roles": {"user": "", "assistant": ""},
            "seps": [""],
            "stop_str": [],
            "stop_token_ids": [],
        },
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def stand_in_tokenizer(vocab_size: int) -> dict[str, Any]:
    """A ``tokenizer.json`` with one word an id: the engine is driven by ids, and insists on a
    tokenizer all the same."""
    digits = max(1, math.ceil(math.log10(max(2, vocab_size))))
    words = {f"t{number:0{digits}d}": number for number in range(vocab_size)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": f"t{0:0{digits}d}"},
    }
