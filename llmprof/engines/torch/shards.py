"""What one rank of a tensor-parallel Llama holds, and where the ranks meet.

Column-parallel projections (q, k, v, gate, up) need no exchange; the row-parallel ones behind them
(o, down) leave a partial sum on every rank that one all-reduce completes: two a layer (Megatron-LM,
arXiv:1909.08053, section 3). The embedding is on every rank; the output head is split by its rows,
so each rank knows the best token of its part of the vocabulary and one all-gather of a pair a
sequence finds the best of all. Imported late: torch is loaded at import.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from llmprof.engines.torch.choices import Choices
from llmprof.engines.torch.llama import ReadWeight
from llmprof.models.presets import HEAD, LlamaConfig

_ROWS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
_COLUMNS = ("o_proj.weight", "down_proj.weight")
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""torch renamed it in 2.13."""
PAIR = 4 * 2
"""Bytes of one rank's part of the all-gather for one sequence: a value and a token, fp32 each."""


@dataclass(frozen=True)
class Shard:
    """One rank's part of the model; ``world`` 1 is a rank of its own that exchanges nothing."""

    rank: int
    world: int

    def config(self, config: LlamaConfig) -> LlamaConfig:
        """The shape of this rank's layers; the vocabulary stays whole."""
        return replace(
            config,
            num_attention_heads=config.num_attention_heads // self.world,
            num_key_value_heads=config.num_key_value_heads // self.world,
            intermediate_size=config.intermediate_size // self.world,
        )

    def reading(self, read: ReadWeight) -> ReadWeight:
        """``read``, cut down to this rank's part of each weight. Every rank reads all weights in
        the same order, so that random ones are those of one GPU."""

        def part(name: str) -> Tensor:
            weight = read(name)
            if name.endswith(_ROWS):
                return self.rows(weight)
            if name.endswith(_COLUMNS):
                size = weight.shape[1] // self.world
                return weight.narrow(1, self.rank * size, size).clone()
            return self.rows(weight) if name == HEAD else weight

        return part

    def rows(self, weight: Tensor) -> Tensor:
        """This rank's rows, as memory of their own: the rest can be freed."""
        size = weight.shape[0] // self.world
        return weight.narrow(0, self.rank * size, size).clone()

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(partial)
        return partial

    def next_token(self, logits: Tensor) -> Tensor:
        """logits [B, V / world] of every rank → the best token of each sequence, [B], on all."""
        value, index = logits.max(-1)
        # fp32 holds every token id exactly (below 2**24).
        mine = torch.stack((value.float(), (index + self.rank * logits.shape[-1]).float()), -1)
        pairs = mine.new_empty((self.world * len(mine), 2))
        _all_gather(pairs, mine)
        pairs = pairs.view(self.world, len(mine), 2)
        best = pairs[..., 0].argmax(0, keepdim=True)  # the lowest rank among equals, as argmax does
        return pairs[..., 1].gather(0, best)[0].long()

    def payloads(self, config: LlamaConfig, batch: int, element: int) -> dict[str, int]:
        """Bytes of each collective of a decode step as nccl-tests count them: of an all-reduce its
        buffer, of an all-gather what every rank has behind it."""
        return {
            "AllReduce": batch * config.hidden_size * element,
            "AllGather": self.world * batch * PAIR,
        }


def meet(chosen: Choices, rank: int, rendezvous: str) -> None:
    """Join the process group: NCCL on GPUs, gloo on a CPU.

    Raises:
        RuntimeError: not all ranks came in time.
    """
    on_cuda = chosen.device.type == "cuda"
    if not on_cuda:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's name need not resolve
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=chosen.world,
        timeout=timedelta(seconds=chosen.timeout_s),
        device_id=chosen.device if on_cuda else None,
    )
    # All see each other before any weight is made, and NCCL is set up before a graph is captured.
    dist.all_reduce(torch.zeros(1, device=chosen.device))
    if on_cuda:
        torch.cuda.synchronize(chosen.device)


def part(on_cpu: bool) -> None:
    """Leave the process group. NCCL's is left to the end of the process: taking it down has been
    seen to hang while a CUDA graph with collectives lives."""
    if on_cpu and dist.is_initialized():
        dist.destroy_process_group()
