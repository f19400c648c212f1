"""What a decode step reads of a GGUF model and what a position adds to its KV cache: right, or a
reason. Standard library only.

llama.cpp runs a hundred architectures, and the file says of none how it is computed. So nothing is
assumed that is not known: a table that is looked up by rows is told by its name, the KV heads of a
layer are counted in that layer's own tensors, and where a name or an architecture is not known
there is no number.
"""

from __future__ import annotations

from llmprof.models.gguf.header import GgufHeader, TensorInfo
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

ROPE_FACTORS = "rope_freqs.weight"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_FACTORS = (ROPE_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")
"""Divisors of the rotary frequencies: no weights."""
_ROW_TABLES = ("position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Read by rows, one for each token. (llama-arch.cpp names them; gpt2, bert, gemma3n.)"""
_WHOLE = (
    _EMBEDDING,
    _HEAD,
    "altup_proj.weight",
    "altup_unembd_proj.weight",
    "per_layer_model_proj.weight",
)
"""Matrices outside of the layers that a step reads whole (the embedding: only where it is tied)."""
# fmt: off
_PLAIN_CACHE = frozenset((
    "llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "granite", "granitemoe", "lfm2", "gpt2",
    "gptneox", "starcoder", "starcoder2", "falcon", "mpt", "bloom", "stablelm", "phi2",
    "internlm2", "olmo", "olmoe", "baichuan", "command-r", "nemotron",
))
# fmt: on
"""Architectures whose attention layers keep K and V of every position, once each. Others have
windows, shared or compressed caches, partly written in llama.cpp's code alone."""


def parameters(header: GgufHeader) -> int:
    """Count of all weights of the file."""
    return sum(t.count for name, t in header.tensors.items() if name not in _FACTORS)


def step_tensors(header: GgufHeader) -> list[TensorInfo] | Unavailable:
    """The tensors that a decode step reads whole.

    Not those of which it reads a row: an embedding table that is not tied, position tables, the
    per-layer embeddings of Gemma 3n.
    """
    tied = _HEAD not in header.tensors
    found = []
    for name, tensor in header.tensors.items():
        if name in _FACTORS or name in _ROW_TABLES or ".attn_rot_embd." in name:
            continue
        if name == _EMBEDDING and not tied:
            continue
        if "_exps." in name:
            return Unavailable("mixture of experts: bytes a step depend on the routing")
        matrix = len(tensor.shape) > 1 and max(tensor.shape) < tensor.count
        if (matrix and name not in _WHOLE and not name.startswith("blk.")) or ".nextn." in name:
            return Unavailable(
                f"bytes a step: it is not known how tensor {one_line(name, 80)} is read"
            )
        found.append(tensor)
    return found


def kv_values_per_token(header: GgufHeader) -> int | Unavailable:
    """Values of K and V, all layers together, that one position of one sequence adds."""
    architecture = header.architecture
    unknown = Unavailable(
        f"KV bytes a token: not modelled for architecture {one_line(architecture, 40)}"
    )
    layers = header.integer(f"{architecture}.block_count")
    odd = any(key.endswith(("sliding_window", "shared_kv_layers")) for key in header.metadata)
    if odd or architecture not in _PLAIN_CACHE or not layers or layers > len(header.tensors):
        return unknown
    total = 0
    for layer in range(layers):
        values = _of_layer(header, f"blk.{layer}.")
        if values is None:
            return unknown
        total += values
    return total or unknown


def _of_layer(header: GgufHeader, prefix: str) -> int | None:
    """0 for a layer without attention (a short convolution, a feed-forward alone)."""
    rows = {}
    for part in ("attn_k", "attn_v", "attn_qkv"):
        tensor = header.tensors.get(f"{prefix}{part}.weight")
        if tensor is not None:
            rows[part] = tensor.shape[0]
    if rows.keys() == {"attn_k", "attn_v"}:
        return rows["attn_k"] + rows["attn_v"]
    if rows.keys() == {"attn_qkv"}:
        architecture = header.architecture
        heads = header.integer(f"{architecture}.attention.head_count")
        width = header.integer(f"{architecture}.embedding_length")
        if not heads or not width:
            return None
        size = header.integer(f"{architecture}.attention.key_length") or width // heads
        left = rows["attn_qkv"] - heads * size
        return left if left > 0 else None
    own = [name.removeprefix(prefix) for name in header.tensors if name.startswith(prefix)]
    attends = any(name.startswith("attn_") and "norm" not in name for name in own)
    return None if rows or attends or not own else 0


def step_projections(header: GgufHeader) -> dict[str, list[int]] | None:
    """Matrices of the first layer in the file's order, then the head: [outputs, inputs, bytes]."""
    head = header.tensors.get(_HEAD) or header.tensors.get(_EMBEDDING)
    found = {
        name.removeprefix("blk.0.").removesuffix(".weight"): [*tensor.shape, tensor.n_bytes]
        for name, tensor in header.tensors.items()
        if name.startswith("blk.0.") and name.endswith(".weight") and len(tensor.shape) == 2
    }
    if not found or head is None or len(head.shape) != 2:
        return None
    return {**found, "output": [*head.shape, head.n_bytes]}
