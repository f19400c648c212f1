"""A plain Llama in torch: what the torch engine decodes with.

Imported late, by ``torch_engine``: torch is loaded at import. Shapes in comments: B sequences,
T new positions, S cached positions, H query heads, K KV heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmprof.models.presets import EMBEDDING, FINAL_NORM, HEAD, LlamaConfig, RopeScaling
from llmprof.models.weights import WeightSource


class Shard(Protocol):
    """One rank's part of a model (``shards.Shard``)."""

    def rows(self, weight: Tensor) -> Tensor:
        """Its part of a matrix that is split by rows."""

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all ranks."""

    def next_token(self, logits: Tensor) -> Tensor:
        """The best token of all ranks' parts of the vocabulary, [B]."""


ReadWeight = Callable[[str], Tensor]
"""HF name → that weight on the engine's device, in its dtype."""


@dataclass
class Layer:
    """One layer's weights, [out, in]; what is read together lies together."""

    input_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, factors: Any | None
) -> Tensor:
    """Angle a position for each pair of a head, [D / 2] fp64.

    ``theta^(-2i / D)``, divided by ``factors`` where a GGUF file brings them. ``llama3`` leaves
    fast frequencies alone, divides slow ones by the factor and blends between (transformers,
    ``_compute_llama3_parameters``).
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = theta**-steps
    if factors is not None:
        frequencies = frequencies / torch.tensor(factors, dtype=torch.float64)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def random_weights(
    config: LlamaConfig, seed: int, device: torch.device, dtype: torch.dtype
) -> ReadWeight:
    """Seeded weights made on the device, one at a time, in ``tensor_shapes`` order.

    Projections are normal with variance 1 / fan-in and the norms are 1, so that activations stay
    near 1; the two projections into the residual stream are smaller by sqrt(2 layers), as GPT-2
    does it, or the stream would grow with depth.
    """
    source = torch.Generator(device=device).manual_seed(seed)
    shapes = config.tensor_shapes()
    shrink = 1 / math.sqrt(2 * config.num_hidden_layers)

    def read(name: str) -> Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=dtype)
        scale = 1.0 if name == EMBEDDING else 1 / math.sqrt(shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale *= shrink
        weight = torch.empty(shape, device=device, dtype=dtype)
        return weight.normal_(0.0, scale, generator=source)

    return read


def stored_weights(source: WeightSource, device: torch.device, dtype: torch.dtype) -> ReadWeight:
    """Weights of a file, converted one at a time."""

    def read(name: str) -> Tensor:
        weight: Tensor = source.read(name)
        return weight.to(device=device, dtype=dtype)

    return read


class TorchLlama:
    """Weights, KV cache and the forward pass. Positions of all sequences advance together."""

    def __init__(
        self,
        config: LlamaConfig,
        read: ReadWeight,
        *,
        batch: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        rope_factors: Any | None = None,
        told: Callable[[float], None] = lambda share: None,
        shard: Shard | None = None,
    ) -> None:
        """Take every weight from ``read`` and allocate a cache of ``positions``.

        ``told`` hears the share of the layers that is loaded. With a ``shard``, ``config`` and what
        ``read`` gives are one rank's part.
        """
        self.config = config
        self.dtype = dtype
        self.shard = shard
        self.embedding = read(EMBEDDING)
        self.layers = list(_layers(config, read, told))
        self.final_norm = read(FINAL_NORM)
        if config.tie_word_embeddings:
            self.head = self.embedding if shard is None else shard.rows(self.embedding)
        else:
            self.head = read(HEAD)
        self._rope_factors = rope_factors
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.make_cache(batch, positions)

    def make_cache(self, batch: int, positions: int) -> None:
        """Allocate a cache of that size, in place of the one before, and the tables of RoPE."""
        config, device, dtype = self.config, self.embedding.device, self.dtype
        self.cache.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what is free in blocks of the old size is no use
        shape = (batch, config.num_key_value_heads, positions, config.head_dim)
        for _ in self.layers:
            keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
            self.cache.append((keys, values))
        self.positions = torch.arange(positions, device=device)
        angles = torch.outer(
            torch.arange(positions, dtype=torch.float64),
            rope_frequencies(
                config.head_dim, config.rope_theta, config.rope_scaling, self._rope_factors
            ),
        )
        # Both halves of a head turn by the same angles; the first half's sine is negative, see
        # ``_rotate``. [S, 1, D], the 1 stands for the heads.
        cos, sin = angles.cos(), angles.sin()
        self.cos = torch.cat((cos, cos), -1)[:, None].to(device, dtype)
        self.sin = torch.cat((-sin, sin), -1)[:, None].to(device, dtype)

    def forward(
        self, ids: Tensor, positions: Tensor, kv_length: int, mask: Tensor | None
    ) -> Tensor:
        """Logits of the last of the new positions.

        Args:
            ids: [B, T] on the device.
            positions: [T] on the device; 0 … T-1 for a prompt, one entry for a step.
            kv_length: cached positions that attention reads, the new ones included.
            mask: additive, [kv_length]; ``None`` where all that is read counts.

        Returns:
            [B, vocabulary], of a shard its part of it.
        """
        eps = self.config.rms_norm_eps
        width = (self.config.hidden_size,)
        cos, sin = self.cos[positions], self.sin[positions]
        x = F.embedding(ids, self.embedding)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            y = F.rms_norm(x, width, layer.input_norm, eps)
            x = x + self._attention(layer, cache, y, positions, cos, sin, kv_length, mask)
            y = F.rms_norm(x, width, layer.mlp_norm, eps)
            gate, up = F.linear(y, layer.gate_up).chunk(2, -1)
            x = x + self._whole(F.linear(F.silu(gate) * up, layer.down))
        return F.linear(F.rms_norm(x[:, -1], width, self.final_norm, eps), self.head)

    def next_token(self, logits: Tensor) -> Tensor:
        """Greedy: the best token of each sequence, [B]."""
        return logits.argmax(-1) if self.shard is None else self.shard.next_token(logits)

    def _whole(self, partial: Tensor) -> Tensor:
        """What a row-parallel projection leaves, summed over the ranks."""
        return partial if self.shard is None else self.shard.sum(partial)

    def _attention(
        self,
        layer: Layer,
        cache: tuple[Tensor, Tensor],
        x: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        kv_length: int,
        mask: Tensor | None,
    ) -> Tensor:
        config = self.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        batch, length, _ = x.shape
        qkv = F.linear(x, layer.qkv).view(batch, length, heads + 2 * kv_heads, config.head_dim)
        turned = _rotate(qkv[:, :, : heads + kv_heads], cos, sin)
        q = turned[:, :, :heads].transpose(1, 2)  # [B, H, T, D]
        keys, values = cache
        keys.index_copy_(2, positions, turned[:, :, heads:].transpose(1, 2))
        values.index_copy_(2, positions, qkv[:, :, heads + kv_heads :].transpose(1, 2))
        keys, values = keys[:, :, :kv_length], values[:, :, :kv_length]
        group = heads // kv_heads
        if length == 1:
            # The query heads of a group share keys and, at one position, need no causal mask:
            # as rows of one attention they read the KV cache once, where repeating would copy it.
            q = q.reshape(batch, kv_heads, group, config.head_dim)
            rows = None if mask is None else mask.expand(batch, kv_heads, group, kv_length)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=rows)
        else:
            keys = keys.repeat_interleave(group, 1)
            values = values.repeat_interleave(group, 1)
            y = F.scaled_dot_product_attention(q, keys, values, is_causal=True)
            y = y.transpose(1, 2)
        y = y.reshape(batch, length, heads * config.head_dim)
        return self._whole(F.linear(y, layer.output))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as HF lays it out: element i turns with i + D/2. x [B, T, heads, D]."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _layers(
    config: LlamaConfig, read: ReadWeight, told: Callable[[float], None]
) -> Iterator[Layer]:
    for number in range(config.num_hidden_layers):
        prefix = f"model.layers.{number}."

        def part(*names: str, prefix: str = prefix) -> Tensor:
            parts = [read(f"{prefix}{name}.weight") for name in names]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        yield Layer(
            input_norm=part("input_layernorm"),
            qkv=part("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output=part("self_attn.o_proj"),
            mlp_norm=part("post_attention_layernorm"),
            gate_up=part("mlp.gate_proj", "mlp.up_proj"),
            down=part("mlp.down_proj"),
        )
        told((number + 1) / config.num_hidden_layers)
