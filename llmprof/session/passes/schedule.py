"""Whose turn it is."""

from __future__ import annotations

import random


class Turns:
    """The order inside each round, shuffled by the seed: a fixed order would give one engine the
    GPU as the other left it (hot, at other clocks) every time."""

    def __init__(self, engines: int, seed: int) -> None:
        self._engines = engines
        self._source = random.Random(f"llmprof-order-{seed}")

    def next(self) -> list[int]:
        """Numbers of the engines, each once."""
        order = list(range(self._engines))
        self._source.shuffle(order)
        return order
