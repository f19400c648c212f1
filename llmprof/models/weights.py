"""Where an engine's weights come from: one seam for GGUF files and safetensors folders."""

from __future__ import annotations

from typing import Any, Protocol

from llmprof.models.presets import LlamaConfig


class WeightSource(Protocol):
    """Opened and checked weights of a Llama under their HF names.

    Every name of ``config.tensor_shapes()`` is there and has that shape once this exists.
    """

    config: LlamaConfig
    format: str
    """``gguf Q4_1``, ``safetensors bf16``."""
    weights_id: str
    """Equal for two sources that hold the same weights (the same GGUF file)."""
    rope_factors: Any | None
    """Divisors of the rotary frequencies, numpy [head_dim / 2] fp32, where the file has them."""
    notes: list[str]

    def read(self, name: str) -> Any:
        """One weight as a torch tensor on the CPU, rows of q and k in HF's order.

        Raises:
            ModelError: the data cannot be read.
        """

    def close(self) -> None: ...


def held_id(weights_id: str, dtype: str, exact: bool) -> str:
    """``weights_id`` of what an engine holds that converts to ``dtype`` on load.

    bfloat16 keeps 8 bits of fp16's 11, which decides other tokens: those are other weights, unless
    the file has them so (``exact``).
    """
    return weights_id if exact or dtype not in ("bf16", "bfloat16") else f"{weights_id}-bf16"
