"""Small real model files that tests write: a Hugging Face folder, a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from llmprof.models.gguf.reader import gguf_name
from llmprof.models.presets import LlamaConfig

SHAPE = LlamaConfig(64, 96, 2, 4, 2, 16, 300, 1e-5, 10000.0, 512)


def weights(config: LlamaConfig = SHAPE, seed: int = 7) -> dict[str, np.ndarray]:
    """Random fp32 weights; norms are not all 1, so that a forgotten one shows."""
    source = np.random.default_rng(seed)
    made = {}
    for name, shape in config.tensor_shapes().items():
        spread = source.standard_normal(shape) / np.sqrt(shape[-1])
        made[name] = (1 + spread if len(shape) == 1 else spread).astype(np.float32)
        if name == "model.embed_tokens.weight":
            made[name] *= np.float32(np.sqrt(shape[-1]))
    return made


def hf_config(config: LlamaConfig = SHAPE) -> dict[str, object]:
    keys = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        " head_dim vocab_size rms_norm_eps rope_theta max_position_embeddings tie_word_embeddings"
    )
    return {"model_type": "llama", **{key: getattr(config, key) for key in keys.split()}}


def write_hf(folder: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config()))
    if shards == 1:
        save_file(tensors, str(folder / "model.safetensors"))
        return folder
    table = {}
    for shard in range(shards):
        part = dict(list(tensors.items())[shard::shards])
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, str(folder / name))
        table.update(dict.fromkeys(part, name))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    return folder


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    config: LlamaConfig = SHAPE,
    rope_factors: np.ndarray | None = None,
    *,
    architecture: str = "llama",
    metadata: dict[str, object] | None = None,
    more: dict[str, np.ndarray] | None = None,
    **split: object,
) -> Path:
    """As llama.cpp's converter writes a Llama in F32: q and k rows reordered, no tokenizer.

    ``metadata`` has keys without the architecture, ``more`` tensors by their GGUF names; ``split``
    is GGUFWriter's own (``split_max_tensors=9, small_first_shard=True``).
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture, **split)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
        add.update({float: writer.add_float32, list: writer.add_array})
        add[type(value)](f"{architecture}.{key}", value)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if "attention.head_count_kv" not in (metadata or {}):
        writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = tensor.shape[0] // config.head_dim
            halves = tensor.reshape(heads, 2, config.head_dim // 2, -1)
            tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
        writer.add_tensor(
            gguf_name(name) if name.startswith(("model.", "lm_head")) else name, tensor
        )
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
