"""How the ExLlama adapters step: the bare forward, or a paged generator with its jobs.

torch is handed in, so that this module imports nothing heavy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

Rows = Sequence[Sequence[int]]


class Drive(Protocol):
    """Prefill and greedy decode steps of one loaded model."""

    def prefill(self, rows: Rows) -> list[int]: ...

    def step(self) -> list[int] | None: ...

    def finish(self) -> list[list[int]]:
        """Tokens of every free-running step since ``prefill``, one row a step."""

    def reset(self) -> None: ...


class ForwardDrive:
    """``model.forward`` once a token; the argmax and the next id stay on the GPU.

    Args:
        forward: (ids [B, T] on the GPU, is it a prompt) → logits [B, 1, vocabulary].
        rewind: forget the sequences.
        guard: ``torch.inference_mode`` or ``torch.no_grad``.
        vocab_size: logits beyond it are padding.
        synchronous: bring every token to the host before the step returns.
        device: where ids go.
    """

    def __init__(
        self,
        torch: Any,
        forward: Callable[[Any, bool], Any],
        rewind: Callable[[], None],
        guard: Callable[[], AbstractContextManager[Any]],
        vocab_size: int,
        synchronous: bool,
        device: str = "cuda:0",
    ) -> None:
        self._torch = torch
        self._forward = forward
        self._rewind = rewind
        self._guard = guard
        self._vocab = vocab_size
        self._synchronous = synchronous
        self._device = device
        self._token: Any = None
        self._kept: list[Any] = []

    def prefill(self, rows: Rows) -> list[int]:
        self._kept.clear()
        with self._guard():
            self._rewind()
            ids = self._torch.tensor(rows, dtype=self._torch.long).to(self._device)
            return _flat(self._next(ids, True))

    def step(self) -> list[int] | None:
        if self._token is None:
            raise RuntimeError("decode step before prefill")
        with self._guard():
            token = self._next(self._token, False)
            if self._synchronous:
                return _flat(token)
        self._kept.append(token)
        return None

    def finish(self) -> list[list[int]]:
        if not self._kept:
            return []
        with self._guard():
            rows: list[list[int]] = self._torch.cat(self._kept, dim=1).t().tolist()
        self._kept.clear()
        return rows

    def reset(self) -> None:
        self._kept.clear()
        self._token = None

    def _next(self, ids: Any, prompt: bool) -> Any:
        logits = self._forward(ids, prompt)[:, -1, : self._vocab]
        self._token = self._torch.argmax(logits, dim=-1, keepdim=True)
        return self._token


class JobsDrive:
    """A generator of ExLlamaV2 or V3: one job a sequence, one ``iterate()`` a step.

    Args:
        generator: with ``iterate``, ``num_remaining_jobs`` and ``clear_queue``.
        enqueue: (sequence number, prompt) → adds a job whose ``identifier`` is that number.
        forget: empties the generator's page table: it keeps the pages of past prompts, and the
            next prefill of the same prompt would be a look-up.
        prefilling: entered around ``prefill``.
    """

    def __init__(
        self,
        generator: Any,
        enqueue: Callable[[int, Sequence[int]], None],
        forget: Callable[[], None],
        batch: int,
        prefilling: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._generator = generator
        self._enqueue = enqueue
        self._forget = forget
        self._prefilling = prefilling
        self._waiting: list[deque[int]] = [deque() for _ in range(batch)]

    def prefill(self, rows: Rows) -> list[int]:
        with self._prefilling():
            for number, row in enumerate(rows):
                self._enqueue(number, row)
            return self._row()

    def step(self) -> list[int] | None:
        return self._row()

    def finish(self) -> list[list[int]]:
        return []

    def reset(self) -> None:
        if self._generator.num_remaining_jobs():
            self._generator.clear_queue()
        self._forget()
        for waiting in self._waiting:
            waiting.clear()

    def _row(self) -> list[int]:
        """One token of every sequence; sequences that start later make the others wait."""
        while not all(self._waiting):
            if not self._generator.num_remaining_jobs():
                raise RuntimeError("the generator ended its jobs before the forced length")
            for result in self._generator.iterate():
                if result["stage"] == "error":
                    raise RuntimeError(f"a job of the generator failed: {result['error']}")
                if result["stage"] == "streaming" and "token_ids" in result:
                    self._waiting[result["identifier"]].extend(_flat(result["token_ids"]))
        return [waiting.popleft() for waiting in self._waiting]


def _flat(tensor: Any) -> list[int]:
    values: list[int] = tensor.flatten().tolist()
    return values
