"""Does a model fit: what it needs, what is free. Imported late, by an engine's ``load``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmprof.engines.host_memory import MIB, free_text, host_free_bytes
from llmprof.errors import OutOfMemory
from llmprof.models.presets import LlamaConfig


def needed_bytes(config: LlamaConfig, element: int, batch: int, positions: int) -> int:
    """Weights, KV cache, and the largest copy made while loading (gate and up laid together).

    ``element`` is the bytes of one value.
    """
    weights = config.weight_bytes(element)
    cache = config.kv_bytes_per_token(element) * batch * positions
    return weights + cache + 2 * config.intermediate_size * config.hidden_size * element


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the GPU or of the host; ``None`` where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_free_bytes()


def check_fits(
    engine: str, need: int, device: torch.device, what: str = "weights and KV cache need"
) -> None:
    """Raise ``OutOfMemory`` with both numbers before anything is allocated.

    Args:
        need: bytes of ``what``.
    """
    free = free_bytes(device)
    if free is not None and need > free:
        raise OutOfMemory(
            f"{engine}: {what} {need // MIB} MiB, {free // MIB} MiB are free on"
            f" {device}; use a smaller model, batch, context or dtype"
        )


@contextmanager
def memory_errors(engine: str, what: str, device: torch.device) -> Iterator[None]:
    """Turn torch's allocation failures into ``OutOfMemory``."""
    try:
        yield
    except RuntimeError as why:
        # The CPU allocator raises a plain RuntimeError.
        if not isinstance(why, torch.cuda.OutOfMemoryError) and "CPUAllocator" not in str(why):
            raise
        free = free_text(free_bytes(device))
        raise OutOfMemory(f"{engine}: {what} did not fit on {device}{free}") from None
