"""Llama shapes: the presets, and what follows from a shape. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmprof.errors import ModelError
from llmprof.plaintext import one_line

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched; the fields of HF's ``rope_scaling``.

    ``linear`` divides every frequency by ``factor``; ``llama3`` only the slow ones, see
    ``torch_llama.rope_frequencies``.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """One Llama shape, named as in an HF ``config.json``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not 0 < value < 2**31:
                raise ModelError(f"model configuration: {name} = {value} is out of range")
        if not (math.isfinite(self.rms_norm_eps) and math.isfinite(self.rope_theta)):
            raise ModelError("model configuration: rms_norm_eps and rope_theta must be finite")
        if self.rope_theta <= 0 or self.rms_norm_eps < 0:
            raise ModelError("model configuration: rope_theta and rms_norm_eps must be positive")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"model configuration: {self.num_attention_heads} heads do not divide among"
                f" {self.num_key_value_heads} KV heads"
            )
        if self.head_dim % 2:
            raise ModelError(
                f"model configuration: head_dim {self.head_dim} is odd, RoPE needs two"
            )

    def layer_shapes(self) -> dict[str, tuple[int, int] | tuple[int]]:
        """Shape of every weight of a layer, by its HF name after ``model.layers.N.``; [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        return {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (query, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """HF name → shape of every weight; ``lm_head.weight`` only where it is not tied."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            for name, shape in self.layer_shapes().items():
                shapes[f"model.layers.{layer}.{name}"] = shape
        shapes[FINAL_NORM] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes[HEAD] = (self.vocab_size, self.hidden_size)
        return shapes

    @property
    def parameters(self) -> int:
        """Count of all weights, tied ones once."""
        layer = sum(math.prod(shape) for shape in self.layer_shapes().values())
        tables = 1 if self.tie_word_embeddings else 2
        embedding = self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + tables * embedding + self.hidden_size

    @property
    def step_parameters(self) -> int:
        """Weights that a decode step reads: all but the embedding table, of which it takes one
        row; a tied table counts, because the output projection reads it whole."""
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self.parameters - embedding

    def weight_bytes(self, element_size: int) -> int:
        """Bytes of all weights at ``element_size`` bytes each."""
        return self.parameters * element_size

    def kv_bytes_per_token(self, element_size: int) -> int:
        """K and V of all layers for one position of one sequence, bytes."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * element_size

    @staticmethod
    def from_hf(data: Mapping[str, Any]) -> LlamaConfig:
        """From a parsed HF ``config.json``.

        Raises:
            ModelError: not a Llama, a missing or odd value, or a variant that is not implemented.
        """
        kind = data.get("model_type")
        if kind is None:
            raise ModelError(
                "config.json has no model_type, so it does not say what it computes (transformers"
                ' refuses it too); add "model_type": "llama" if it is a Llama'
            )
        if kind != "llama":
            raise ModelError(f"config.json: model_type {_shown(kind)}; this engine loads llama")
        _refuse_variants(data)
        rope = _rope(data)
        positions = _integer(data, "max_position_embeddings", 2048)
        hidden = _integer(data, "hidden_size")
        heads = _integer(data, "num_attention_heads")
        return LlamaConfig(
            hidden_size=hidden,
            intermediate_size=_integer(data, "intermediate_size"),
            num_hidden_layers=_integer(data, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_integer(data, "num_key_value_heads", heads),
            head_dim=_integer(data, "head_dim", hidden // max(1, heads)),
            vocab_size=_integer(data, "vocab_size"),
            rms_norm_eps=_number(data, "rms_norm_eps", 1e-6),
            rope_theta=_number(rope, "rope_theta", _number(data, "rope_theta", 10000.0)),
            max_position_embeddings=positions,
            tie_word_embeddings=_flag(data, "tie_word_embeddings"),
            rope_scaling=_scaling(rope, data.get("original_max_position_embeddings"), positions),
        )


def _refuse_variants(data: Mapping[str, Any]) -> None:
    if data.get("quantization_config"):
        raise ModelError(
            "config.json has a quantization_config; this engine loads fp16, bf16 or fp32 weights"
        )
    for key in ("attention_bias", "mlp_bias"):
        if data.get(key):
            raise ModelError(f"config.json: {key} is true, which this engine does not implement")
    activation = data.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"config.json: hidden_act {_shown(activation)}; this engine has silu only")


def _rope(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """``rope_scaling`` where there is one, else ``rope_parameters`` (transformers 5), ``{}`` where
    both are empty: so ``convert_rope_params_to_dict`` of transformers 5 has it."""
    value = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"config.json: rope_scaling {_shown(value)} is not an object")
    return value


def _scaling(rope: Mapping[str, Any], outside: Any, positions: int) -> RopeScaling | None:
    """
    Args:
        outside: ``original_max_position_embeddings`` beside the object, which wins over the one in
            it (``standardize_rope_params`` of transformers 5).
        positions: what stands in for it.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError("config.json: partly rotated heads are not implemented")
    if kind == "linear":
        return RopeScaling("linear", _positive(rope, "factor"))
    if kind == "llama3":
        key = "original_max_position_embeddings"
        return RopeScaling(
            "llama3",
            _positive(rope, "factor"),
            _positive(rope, "low_freq_factor"),
            _positive(rope, "high_freq_factor"),
            _integer({key: outside} if outside is not None else rope, key, positions),
        )
    raise ModelError(f"config.json: rope scaling {_shown(kind)} is not implemented")


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key)
    if value not in (None, True, False):
        raise ModelError(f"config.json: {key} is {_shown(value)}, expected true or false")
    return bool(value)


def _integer(data: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = data.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"config.json: {key} is {_shown(value)}, expected an integer")
    return value


def _number(data: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = data.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelError(f"config.json: {key} is {_shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ModelError(f"config.json: {key} is too large") from None


def _positive(data: Mapping[str, Any], key: str) -> float:
    value = _number(data, key)
    if not value > 0:
        raise ModelError(f"config.json: {key} is {value}, expected more than 0")
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else one_line(repr(value), 60)


PRESETS = {
    # Small enough for a few ms a step on a CPU; grouped-query attention like the large ones.
    "tiny": LlamaConfig(256, 688, 4, 8, 2, 32, 4096, 1e-5, 10000.0, 4096),
    # Every size a multiple of 128: what all ExLlama formats take.
    "tiny-128": LlamaConfig(1024, 2816, 2, 8, 4, 128, 2048, 1e-5, 10000.0, 4096),
    "llama2-7b": LlamaConfig(4096, 11008, 32, 32, 32, 128, 32000, 1e-5, 10000.0, 4096),
    "llama2-13b": LlamaConfig(5120, 13824, 40, 40, 40, 128, 32000, 1e-5, 10000.0, 4096),
    "llama2-70b": LlamaConfig(8192, 28672, 80, 64, 8, 128, 32000, 1e-5, 10000.0, 4096),
    "llama3-8b": LlamaConfig(4096, 14336, 32, 32, 8, 128, 128256, 1e-5, 500000.0, 8192),
}
"""Shapes whose weights are made at random: decode speed does not depend on their values."""
