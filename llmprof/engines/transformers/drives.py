"""How a transformers model steps: its own ``generate``, or a bare forward with a cache.

torch and transformers are handed in or imported late, so that this module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[Sequence[int]]


class ForwardDrive:
    """``model(…)`` once a token; the argmax is fed back on the device.

    Args:
        step: the forward of a decode step, compiled or not: (ids [B, 1], position ids [B, 1],
            cache) → logits [B, 1, vocabulary].
        prefill: the forward of a prompt: (ids [B, T], cache) → logits [B, 1, vocabulary].
        fresh: an empty cache for the next round.
    """

    def __init__(
        self,
        torch: Any,
        prefill: Callable[[Any, Any], Any],
        step: Callable[[Any, Any, Any], Any],
        fresh: Callable[[], Any],
        device: Any,
    ) -> None:
        self._torch = torch
        self.forward_prompt = prefill
        self.forward = step
        self.fresh = fresh
        self._device = device
        self._cache: Any = None
        self._token: Any = None
        self._position: Any = None

    def prefill(self, rows: Rows) -> list[int]:
        with self._torch.inference_mode():
            self._cache = self.fresh()
            ids = self._torch.tensor(rows, dtype=self._torch.long).to(self._device)
            # A tensor of its own: a compiled forward reads it where it lies.
            self._position = self._torch.full((len(rows), 1), len(rows[0]), device=self._device)
            return self._next(self.forward_prompt(ids, self._cache))

    def step(self) -> list[int]:
        if self._token is None:
            raise RuntimeError("transformers: decode step before prefill")
        with self._torch.inference_mode():
            found = self._next(self.forward(self._token, self._position, self._cache))
            self._position += 1
        return found

    def reset(self) -> None:
        self._cache = self._token = self._position = None

    def close(self) -> None:
        self.reset()

    @property
    def cache(self) -> Any:
        """That of the round that goes on; ``None`` between rounds."""
        return self._cache

    def _next(self, logits: Any) -> list[int]:
        self._token = logits[:, -1].argmax(dim=-1, keepdim=True)
        row: list[int] = self._token.flatten().tolist()
        return row


class GenerateDrive:
    """``model.generate`` with its own loop, stopped at every token.

    ``generate`` decodes a whole answer in one call. Here it runs in a greenlet, which hands each
    token over from its streamer and sleeps there until the next step is wanted: a switch of stacks
    in one thread, under a microsecond, where a thread and two locks cost tens. The token has to be
    on the host for that; ``generate`` itself copies it for any streamer, and waits for its
    stopping criteria right after.

    Args:
        generate: (ids [B, T], streamer) → runs to the end, or until it is abandoned.
        spawn: ``greenlet.greenlet``.
        current: ``greenlet.getcurrent``.
        abandon: ``greenlet.GreenletExit``: thrown into a ``generate`` that is no longer wanted.
    """

    def __init__(
        self,
        torch: Any,
        generate: Callable[[Any, Any], None],
        spawn: Callable[..., Any],
        current: Callable[[], Any],
        abandon: type[BaseException],
        device: Any,
    ) -> None:
        self._torch = torch
        self._generate = generate
        self._spawn = spawn
        self._current = current
        self._abandon = abandon
        self._device = device
        self._running: Any = None

    def prefill(self, rows: Rows) -> list[int]:
        self.reset()
        ids = self._torch.tensor(rows, dtype=self._torch.long).to(self._device)
        streamer = _Handover(self._current())
        self._running = self._spawn(lambda: self._generate(ids, streamer))
        return self._next()

    def step(self) -> list[int]:
        if self._running is None:
            raise RuntimeError("transformers: decode step before prefill")
        return self._next()

    def reset(self) -> None:
        running, self._running = self._running, None
        if running is not None and not running.dead:
            running.throw(self._abandon)

    def close(self) -> None:
        self.reset()

    def _next(self) -> list[int]:
        row: list[int] | None = self._running.switch()
        if row is None:
            self._running = None
            raise RuntimeError("transformers: generate ended before the forced length")
        return row


class _Handover:
    """The streamer: ``put`` gets the prompt once and then every new token, [B] on the host."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self._reader.switch(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""
