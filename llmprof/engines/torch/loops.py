"""How the torch engine steps: launched operator by operator, or replayed from CUDA graphs.

Imported late, by ``torch_engine``. Every method runs under ``torch.inference_mode``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmprof.engines.torch.llama import TorchLlama
from llmprof.errors import UsageError

BUCKET = 256
"""Positions a CUDA graph's attention reads are a multiple of this."""
_WARM_UPS = 3
"""Runs before a capture, so that cuBLAS and the allocator have what they want (torch's
documentation of CUDA graphs asks for a few, on a side stream)."""


class EagerLoop:
    """Prefill and greedy decode steps; attention reads exactly the positions that are filled."""

    def __init__(self, model: TorchLlama, positions: int) -> None:
        self.model = model
        self.positions = positions
        self.filled = 0
        self.token: Tensor | None = None

    def prefill(self, ids: Tensor) -> Tensor:
        """ids [B, P] on the device → the next token of each, [B] on the device."""
        length = ids.shape[1]
        logits = self.model.forward(ids, self.model.positions[:length], length, None)
        self.filled = length
        self.token = self.model.next_token(logits)
        return self.token

    def step(self) -> Tensor:
        """Launch one decode step: tokens [B] on the device; a later step leaves them alone."""
        at, token = self.advance(), self.token
        if token is None:
            raise RuntimeError("decode step before prefill")
        logits = self.model.forward(token[:, None], self.model.positions[at : at + 1], at + 1, None)
        self.token = self.model.next_token(logits)
        return self.token

    def advance(self) -> int:
        """The position that this step fills."""
        at = self.filled
        if at >= self.positions:
            raise UsageError(f"the KV cache of {self.positions} positions is full")
        self.filled = at + 1
        return at

    def reset(self) -> None:
        self.filled = 0
        self.token = None


class GraphLoop(EagerLoop):
    """Decode steps replayed from CUDA graphs; prefill stays eager.

    A graph has fixed shapes and addresses, so the token and its position live in tensors that the
    graph itself moves on, and attention reads up to the end of the current bucket under a mask. A
    bucket's graph is captured at its first step, which the full-length warm-up round reaches.
    """

    def __init__(self, model: TorchLlama, positions: int, batch: int) -> None:
        super().__init__(model, positions)
        device = model.positions.device
        self._token = torch.zeros(batch, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def prefill(self, ids: Tensor) -> Tensor:
        first = super().prefill(ids)
        self._token.copy_(first)
        self._position.fill_(self.filled)
        return first

    def step(self) -> Tensor:
        """Replay one step: tokens [B], in the buffer that the next step writes."""
        end = (self.advance() // BUCKET + 1) * BUCKET
        graph = self._graphs.get(end)
        if graph is None:
            graph = self._graphs[end] = self._capture(end)
        graph.replay()
        return self._token

    def _body(self, end: int) -> None:
        visible = self.model.positions[:end] <= self._position
        mask = torch.zeros(end, dtype=self.model.dtype, device=visible.device)
        mask.masked_fill_(~visible, float("-inf"))
        logits = self.model.forward(self._token[:, None], self._position, end, mask)
        self._token.copy_(self.model.next_token(logits))
        self._position.add_(1)

    def _capture(self, end: int) -> torch.cuda.CUDAGraph:
        token, position = self._token.clone(), self._position.clone()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                self._body(end)
                # Each run writes the same cache position, with the value that the replay writes.
                self._token.copy_(token)
                self._position.copy_(position)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self._body(end)
        return graph


def cache_positions(positions: int, cuda_graph: bool) -> int:
    """Positions to allocate: graphs read whole buckets."""
    return -(-positions // BUCKET) * BUCKET if cuda_graph else positions
