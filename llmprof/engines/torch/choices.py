"""The options of the torch engine, checked. torch is handed in: importing this imports nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmprof.engines.options import Options
from llmprof.engines.pytorch.attention import leave_cudnn_out
from llmprof.engines.pytorch.devices import DTYPES, device_of, dtype_of, threads_of
from llmprof.errors import UsageError
from llmprof.models.presets import LlamaConfig

TIMEOUT_S = 120
"""After so long in one collective gloo raises, and NCCL's watchdog ends the process."""


@dataclass(frozen=True)
class Choices:
    """The user's options, defaults filled in."""

    device: Any
    """``torch.device``."""
    dtype: str
    torch_dtype: Any
    """``torch.dtype``."""
    cuda_graph: bool
    threads: int | None
    synchronous: bool
    world: int
    """Ranks of a tensor-parallel model; 1: none but this."""
    timeout_s: int
    """So long a rank waits for the others, in a collective or to meet."""

    def check_shape(self, config: LlamaConfig) -> None:
        """Raise ``UsageError`` for a shape that does not divide among the ranks."""
        sizes = {
            "KV heads": config.num_key_value_heads,
            "attention heads": config.num_attention_heads,
            "inner values": config.intermediate_size,
            "tokens of the vocabulary": config.vocab_size,
        }
        for name, size in sizes.items():
            if size % self.world:
                raise UsageError(
                    f"torch:tp={self.world}: the {size} {name} of this model do not divide among"
                    f" {self.world} ranks"
                )


def choose(options: dict[str, str], torch: Any, rank: int = 0) -> Choices:
    """Of one rank: rank r is on GPU r.

    Raises:
        UsageError: unknown option, bad value, no such device.
    """
    given = Options("torch", options)
    device = device_of(given, torch, rank)
    on_cuda = device.type == "cuda"
    world = given.integer("tp", 1, 1) or 1
    name = options.get("device", "cuda")
    if world > 1 and name not in ("cpu", "cuda"):
        raise UsageError(f"torch:tp={world} takes GPU 0 to {world - 1}: leave device={name} out")
    if on_cuda and world > torch.cuda.device_count():
        raise UsageError(
            f"torch:tp={world}: this machine shows {torch.cuda.device_count()} CUDA GPUs"
        )
    dtype = dtype_of(given, device)
    cuda_graph = given.flag("cuda_graph", False)
    if cuda_graph and not on_cuda:
        raise UsageError("torch:cuda_graph=1 needs device=cuda")
    timeout_s = given.integer("timeout", TIMEOUT_S, 1) or TIMEOUT_S
    threads = threads_of(given, device)
    synchronous = given.flag("sync", True)
    cudnn = given.flag("cudnn_attention", True)
    given.done()
    if not cudnn:
        leave_cudnn_out(torch)
    if on_cuda:
        # Streams, graphs and the memory pool are those of the current device.
        torch.cuda.set_device(device)
    torch_dtype = getattr(torch, DTYPES[dtype])
    return Choices(device, dtype, torch_dtype, cuda_graph, threads, synchronous, world, timeout_s)
