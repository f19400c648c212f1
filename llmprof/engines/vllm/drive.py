"""vLLM a step at a time: one ``LLMEngine.step()`` runs one iteration of its scheduler.

Requests end by length alone; the token ids of an iteration come as deltas. A prompt that the
scheduler cuts into chunks takes several iterations; sequences that are ahead then wait in a queue
here, so that ``prefill`` returns when each has its first token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[Sequence[int]]


class VllmDrive:
    """Prefill and decode steps of an ``LLMEngine``.

    Args:
        engine: ``vllm.LLMEngine``, in this process.
        params: (tokens wanted) → ``SamplingParams`` that ignore every end.
        positions: of a sequence, prompt and answer.
    """

    def __init__(self, engine: Any, params: Callable[[int], Any], positions: int) -> None:
        self._engine = engine
        self._params = params
        self._positions = positions
        self._round = 0
        self._waiting: dict[str, deque[int]] = {}

    def prefill(self, rows: Rows) -> list[int]:
        self.reset()
        self._round += 1
        for number, row in enumerate(rows):
            name = f"{self._round}-{number}"
            self._waiting[name] = deque()
            params = self._params(self._positions - len(row) + 1)
            self._engine.add_request(name, {"prompt_token_ids": list(row)}, params)
        return self._row()

    def step(self) -> list[int]:
        if not self._waiting:
            raise RuntimeError("vllm: decode step before prefill")
        return self._row()

    def reset(self) -> None:
        if self._waiting:
            names, self._waiting = list(self._waiting), {}
            self._engine.abort_request(names)

    def close(self) -> None:
        self.reset()
        core = getattr(self._engine, "engine_core", None)
        if core is not None:
            core.shutdown()
        self._engine = None

    def _row(self) -> list[int]:
        """One token of every sequence."""
        idle = 0
        while not all(self._waiting.values()):
            before = sum(map(len, self._waiting.values()))
            for output in self._engine.step():
                queue = self._waiting.get(str(output.request_id))
                if queue is not None:
                    queue.extend(output.outputs[0].token_ids)
            # A chunk of a prompt gives no token; so many in a row are no prompt.
            idle = idle + 1 if sum(map(len, self._waiting.values())) == before else 0
            if idle > self._positions + 8:
                raise RuntimeError("vllm: its scheduler gives no tokens (preempted for KV memory?)")
            if not self._engine.has_unfinished_requests() and not all(self._waiting.values()):
                raise RuntimeError("vllm: a request ended before the forced length")
        return [queue.popleft() for queue in self._waiting.values()]
