"""Whose turn it is."""

from __future__ import annotations

import random


def interleaved(engines: int, rounds: int, seed: int) -> list[tuple[int, int]]:
    """(round index, engine) in the order to run them: every engine once a round.

    The order inside each round is shuffled by the seed: a fixed order would give one engine the
    GPU as the other left it (hot, at other clocks) every time.
    """
    source = random.Random(f"llmprof-order-{seed}")
    turns: list[tuple[int, int]] = []
    for index in range(rounds):
        order = list(range(engines))
        source.shuffle(order)
        turns += [(index, engine) for engine in order]
    return turns
