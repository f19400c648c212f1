"""A slow Llama in numpy fp64, written apart from the engine: one position after the other, one
head after the other, RoPE as a complex rotation, no cache layout to get wrong."""

from __future__ import annotations

import numpy as np

from llmprof.models.presets import LlamaConfig

Weights = dict[str, np.ndarray]


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def _rotate(head: np.ndarray, position: int, frequencies: np.ndarray) -> np.ndarray:
    half = len(head) // 2
    turned = (head[:half] + 1j * head[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate((turned.real, turned.imag))


def logits(
    config: LlamaConfig, weights: Weights, ids: list[int], frequencies: np.ndarray | None = None
) -> np.ndarray:
    """Logits after every position, [len(ids), vocabulary]."""
    c, size = config, config.head_dim
    if frequencies is None:
        frequencies = c.rope_theta ** (-np.arange(0, size, 2) / size)
    stream = [weights["model.embed_tokens.weight"][token].astype(np.float64) for token in ids]
    for number in range(c.num_hidden_layers):
        w = {
            name: weights[f"model.layers.{number}.{name}"].astype(np.float64)
            for name in c.layer_shapes()
        }
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for position, x in enumerate(stream):
            y = _norm(x, w["input_layernorm.weight"], c.rms_norm_eps)
            k = (w["self_attn.k_proj.weight"] @ y).reshape(-1, size)
            keys.append(np.stack([_rotate(head, position, frequencies) for head in k]))
            values.append((w["self_attn.v_proj.weight"] @ y).reshape(-1, size))
            mixed = []
            for head, q in enumerate((w["self_attn.q_proj.weight"] @ y).reshape(-1, size)):
                shared = head * c.num_key_value_heads // c.num_attention_heads
                q = _rotate(q, position, frequencies)
                scores = np.array([q @ k[shared] for k in keys]) / np.sqrt(size)
                share = np.exp(scores - scores.max())
                share /= share.sum()
                mixed.append(sum(s * v[shared] for s, v in zip(share, values, strict=True)))
            x = x + w["self_attn.o_proj.weight"] @ np.concatenate(mixed)
            y = _norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps)
            gate, up = w["mlp.gate_proj.weight"] @ y, w["mlp.up_proj.weight"] @ y
            stream[position] = x + w["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).astype(np.float64)
    final = weights["model.norm.weight"].astype(np.float64)
    return np.stack([head @ _norm(x, final, c.rms_norm_eps) for x in stream])
