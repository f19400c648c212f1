"""Where an engine on PyTorch runs: device, dtype, threads. torch is handed in, not imported."""

from __future__ import annotations

import os
import re
from typing import Any

from llmprof.engines.options import Options
from llmprof.errors import UsageError
from llmprof.machine import default_threads

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The user's name → torch's."""


def device_of(given: Options, torch: Any, rank: int = 0) -> Any:
    """The option ``device=cpu|cuda|cuda:N`` as a ``torch.device`` that exists.

    ``cuda`` is GPU ``rank``.

    Raises:
        UsageError: bad value, no such device.
    """
    engine = given.engine
    has_cuda = torch.cuda.is_available()
    name = given.text("device", "cuda" if has_cuda else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"{engine}:device={name}: expected cpu, cuda or cuda:N")
    if name != "cpu" and not has_cuda:
        raise UsageError(f"{engine}:device={name}: torch {torch.__version__} sees no CUDA GPU")
    device = torch.device(f"cuda:{rank}" if name == "cuda" else name)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"{engine}:device={name}: there are {count} CUDA GPUs")
    return device


def dtype_of(given: Options, device: Any) -> str:
    """The option ``dtype``, a key of ``DTYPES``: fp16 on a GPU, fp32 on a CPU."""
    return given.text("dtype", "fp16" if device.type == "cuda" else "fp32", tuple(DTYPES))


def threads_of(given: Options, device: Any) -> int | None:
    """The option ``threads``, or ``machine.default_threads`` on a CPU.

    ``None``: torch decides, on a GPU and where the user's environment says.
    """
    threads = given.integer("threads", None, 1)
    if threads is not None or os.environ.get("OMP_NUM_THREADS"):
        return threads
    return default_threads() if device.type == "cpu" else None
