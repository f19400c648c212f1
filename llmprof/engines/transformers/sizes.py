"""What a step of any causal language model reads, by looking at the module itself."""

from __future__ import annotations

from typing import Any

from llmprof.records import Unavailable


def parameters(module: Any) -> int:
    """Count of weights, shared ones once; 4-bit weights of bitsandbytes count as what they hold."""
    return int(module.num_parameters())


def weight_bytes_per_step(module: Any) -> int | Unavailable:
    """Bytes of weights that one decode step reads, packed ones at their packed size.

    An embedding table of which a step reads a row is left out; one that is the output head too is
    read whole. ``Unavailable`` where a step reads a part only (mixture of experts).
    """
    import torch

    config = module.config.get_text_config()
    for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        if (getattr(config, name, None) or 0) > 1:
            return Unavailable("mixture of experts: a step reads the chosen experts only")
    head = module.get_output_embeddings()
    kept = getattr(head, "weight", None)
    tables = {
        table.weight.data_ptr()
        for table in module.modules()
        if isinstance(table, torch.nn.Embedding) and table.weight is not kept
    }
    # What is stored: quantised layers keep their packed weights in buffers, and buffers that are
    # computed (rotary frequencies) are no weights. Tied weights lie at one address.
    stored = {tensor.data_ptr(): tensor for tensor in module.state_dict().values()}
    sizes = (t.numel() * t.element_size() for at, t in stored.items() if at not in tables)
    return int(sum(sizes))


def kv_bytes_per_token(cache: Any, batch: int) -> int | Unavailable:
    """K and V of all layers for one position of one sequence, measured on a filled cache.

    Args:
        cache: a ``transformers.Cache`` after a prefill.
    """
    total = 0
    for layer in getattr(cache, "layers", ()):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4:
            return Unavailable("not every layer keeps K and V for every position")
        if getattr(layer, "is_sliding", False):
            return Unavailable("layers with a sliding window stop growing")
        for tensor in (keys, values):
            # [batch, heads, positions, head size]
            total += tensor.shape[1] * tensor.shape[3] * tensor.element_size()
    return total if total else Unavailable("the cache has no layers")
