"""What the drives of every binding are given, and how they say that it does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmprof.engines.host_memory import MIB, free_text, host_free_bytes
from llmprof.errors import OutOfMemory, UsageError

PROMPT_CHUNK = 512
"""Prompt tokens a call evaluates at most: llama-cpp-python's default ``n_batch``."""
ALL_LAYERS = 0x7FFFFFFF


@dataclass(frozen=True)
class Settings:
    """What a context is made of. ``kv_bytes`` is for the message when it does not fit."""

    path: str
    positions: int
    batch: int
    threads: int
    n_gpu_layers: int
    """-1: all."""
    kv_bytes: int | None

    def reshaped(self, batch: int, positions: int) -> Settings:
        """The same model, for another context."""
        kv_bytes = self.kv_bytes
        if kv_bytes is not None:
            kv_bytes = kv_bytes // (self.batch * self.positions) * batch * positions
        return replace(self, batch=batch, positions=positions, kv_bytes=kv_bytes)

    @property
    def layers_on_gpu(self) -> int:
        """For ``llama_model_params``, whose older versions know no negative number."""
        return ALL_LAYERS if self.n_gpu_layers < 0 else self.n_gpu_layers

    @property
    def context_positions(self) -> int:
        """Of all sequences together: llama.cpp divides them, padded to a multiple of 256 each."""
        return self.batch * (-(-self.positions // 256) * 256)

    def no_context(self) -> OutOfMemory:
        need = self.kv_bytes
        asked = "" if need is None else f" of {max(1, need // MIB)} MiB"
        free = free_text(host_free_bytes())
        return OutOfMemory(f"llamacpp: the KV cache{asked} and its buffers did not fit{free}")

    def cache_full(self) -> UsageError:
        return UsageError(f"llamacpp: the KV cache of {self.positions} is full")
