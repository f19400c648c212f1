"""An MLC weight folder with random parameters, in the shapes of a library. Uses numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llmprof.errors import UsageError
from llmprof.models.locate import MLC_CONFIG
from llmprof.models.mlc_metadata import MlcMetadata
from llmprof.models.mlc_random import RandomParameters
from llmprof.models.mlc_writer import PlannedParameter, write_weights
from llmprof.models.new_folder import new_folder, write_json
from llmprof.models.presets import LlamaConfig
from llmprof.models.tokenizer import STAND_IN

_SPARE = 16 << 20
"""Room for the tokenizer and the JSON files."""
_MAX_STAND_IN = 1 << 20


def synthesise(
    library: MlcMetadata,
    shape: LlamaConfig | None,
    vocab_size: int,
    seed: int,
    target: Path,
    told: Callable[[str, float], None],
) -> int:
    """Write the folder; the bytes of its weights.

    Args:
        shape: of the preset; fills ``model_config``, which MLC LLM's engine reads beside the
            library's metadata.

    Raises:
        UsageError: ``target`` exists, the disk is too small, several GPUs.
    """
    if library.tensor_parallel_shards > 1 or library.pipeline_parallel_stages > 1:
        raise UsageError(
            "the library is for several GPUs; its metadata has the shapes of one GPU's part, not"
            " those of the weight files"
        )
    source = RandomParameters(library, vocab_size, seed)
    total = library.parameter_bytes(vocab_size)
    with new_folder(target, total + _SPARE) as folder:
        write_weights(
            folder,
            (
                PlannedParameter(p.name, p.sizes(vocab_size), p.dtype, partial(source.chunks, p))
                for p in library.parameters
            ),
            {"random": True, "seed": seed},
            lambda written: told("writing weights", written / total),
        )
        write_json(folder / MLC_CONFIG, chat_config(library, shape, vocab_size))
        if vocab_size <= _MAX_STAND_IN:
            write_json(folder / "tokenizer.json", _tokenizer(vocab_size))
            (folder / STAND_IN).touch()
    return total


def chat_config(library: MlcMetadata, shape: LlamaConfig | None, vocab_size: int) -> dict[str, Any]:
    """``mlc-chat-config.json``: what protocol/mlc_chat_config.py and cpp/serve/config.cc need."""
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


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """One word an id: the engine is driven by ids, and insists on a tokenizer all the same."""
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
