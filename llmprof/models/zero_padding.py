"""A Llama embedded into a wider one with zeros. Uses numpy.

For kernels that want a hidden size in multiples of a block. Every weight keeps its values in the
leading rows and columns of a larger matrix of zeros, so that the added channels of the residual
stream are 0 after every layer, and the added heads contribute nothing:

- a padded head has q = k = v = 0, hence an output of 0, and o_proj has zero columns for it. Query
  head i reads KV head i // (query heads / KV heads): heads are added behind the real ones and in
  the same ratio, which leaves every real head its KV head. The head size, and with it the rotary
  embedding and the scale of the scores, stays.
- RMSNorm of x (h channels) padded to x' (H channels) divides by the mean over H channels. The sum
  of squares is the same, so with r = h / H: mean(x'²) = r · mean(x²). With eps' = r · eps and
  weight' = √r · weight:
  x / √(r · mean(x²) + r · eps) · √r · weight = x / √(mean(x²) + eps) · weight.
- an added channel of the MLP has gate = up = 0, hence silu(0) · 0 = 0.

The function is the same; only the rounding of √r · weight to the stored type is new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmprof.models.presets import LlamaConfig


@dataclass(frozen=True)
class ZeroPadding:
    """Where one shape lies in another."""

    inner: LlamaConfig
    """The model as it is."""
    outer: LlamaConfig
    """What is written; ``head_dim`` is the inner one's, not ``hidden_size / heads``."""

    def apply(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The outer model's weight ``name`` (HF) from the inner one's, [out, in] or [channels]."""
        if values.ndim == 1:  # the norms are the only vectors of a Llama
            values = values * np.float32(math.sqrt(self.inner.hidden_size / self.outer.hidden_size))
        padded = np.zeros(self.outer.tensor_shapes()[name], np.float32)
        padded[tuple(slice(size) for size in values.shape)] = values
        return padded

    @property
    def text(self) -> str:
        """``hidden 576 to 640, heads 9 to 12, …``, and what that costs a decode step."""
        sizes = {
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "KV heads": "num_key_value_heads",
            "intermediate": "intermediate_size",
        }
        changes = []
        for word, field in sizes.items():
            before, after = getattr(self.inner, field), getattr(self.outer, field)
            if before != after:
                changes.append(f"{word} {before} to {after}")
        zeros = 1 - self.inner.step_parameters / self.outer.step_parameters
        return (
            f"padded with zeros ({', '.join(changes)}): the same function,"
            f" {zeros:.0%} of the weights a step reads are zeros"
        )


def zero_padding(config: LlamaConfig, multiple: int) -> ZeroPadding | None:
    """The smallest padding that makes every projection's inputs and outputs multiples.

    ``None`` where the hidden size is one already. (An engine that pads the outputs of single
    projections itself can hold such a model as it is.)
    """
    if config.hidden_size % multiple == 0:
        return None
    kv_heads = _up(config.num_key_value_heads, multiple // math.gcd(multiple, config.head_dim))
    hidden = _up(config.hidden_size, multiple)
    outer = replace(
        config,
        hidden_size=hidden,
        intermediate_size=_up(config.intermediate_size, multiple),
        num_attention_heads=kv_heads * (config.num_attention_heads // config.num_key_value_heads),
        num_key_value_heads=kv_heads,
        rms_norm_eps=config.rms_norm_eps * config.hidden_size / hidden,
    )
    return ZeroPadding(config, outer)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
