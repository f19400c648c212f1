"""How many rounds with kernels and PM samples the bandwidth of single kernels needs."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmprof.records import RoundRecord

STEPS = 400
DECODE_S = 2.0
"""Of decoding: 10,000 samples at 200 µs. On an H100 400 steps of 3.6 ms gave kernels of 7 % of the
step to 1.5 %."""
MOST_S = 20.0
"""For one engine, prefills included."""


class Length(NamedTuple):
    rounds: int
    round_s: float
    """About what one takes."""


def sampled_length(traced: RoundRecord, decode_len: int, most_s: float = MOST_S) -> Length:
    """From how fast the traced round was; one round at least.

    Args:
        traced: a round with the same tracers.
        decode_len: steps of each of the rounds.
        most_s: what is left of the run's time; ``MOST_S`` at most.
    """
    if not traced.steps:
        return Length(1, 60.0)
    step_s = (traced.stamps_ns[-1] - traced.stamps_ns[0]) / traced.steps / 1e9
    decode_s = max(step_s * decode_len, 1e-6)
    round_s = decode_s + (traced.stamps_ns[0] - traced.start_ns) / 1e9
    wanted = math.ceil(max(STEPS / decode_len, DECODE_S / decode_s))
    return Length(max(1, min(wanted, int(min(MOST_S, most_s) / round_s))), round_s)
