"""The round loop: what every reported number comes from. Standard library only.

The bare loop over an engine must cost the same as this one, so a step is one call, one clock read
(the end of a step is the start of the next), one store into the shared mapping and one append.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

from llmprof.engines.base import Engine, FreeRunningEngine
from llmprof.goal import FINE, SHORTEST, fitting_length, round_length
from llmprof.worker.stamps import HEADER, StampBoard

Prompt = Sequence[Sequence[int]]


class Ranges(Protocol):
    """Named ranges around the parts of a round (NVTX)."""

    def prepare(self, name: str) -> Any:
        """Make what ``push`` takes, outside the timed loop."""

    def push(self, prepared: Any) -> None: ...

    def pop(self) -> None: ...


@dataclass
class RoundResult:
    """``rows[i]`` holds the token of every sequence after step i (row 0 is from prefill)."""

    end_ns: int
    rows: list[Sequence[int]]
    synchronous: bool


def timed_round(engine: Engine, prompt: Prompt, steps: int, board: StampBoard) -> RoundResult:
    """One round with nothing attached."""
    slots, now, step = board.slots, time.monotonic_ns, engine.decode_step
    rows: list[Sequence[int] | None] = []
    append = rows.append
    slots[1] = now()
    engine.reset()
    gc.collect()  # outside the round, so that a collection of the load is not paid inside
    slots[2] = now()
    append(engine.prefill(prompt))
    slots[HEADER] = now()
    for i in range(HEADER + 1, HEADER + 1 + steps):
        append(step())
        slots[i] = now()
    return _finish(engine, rows)


def ranged_round(
    engine: Engine, prompt: Prompt, steps: int, board: StampBoard, index: int, ranges: Ranges
) -> RoundResult:
    """The same round inside ranges ``round N``, ``prefill``, ``decode 1``…"""
    slots, now, step = board.slots, time.monotonic_ns, engine.decode_step
    push, pop = ranges.push, ranges.pop
    rows: list[Sequence[int] | None] = []
    decode = [ranges.prepare(f"decode {i}") for i in range(1, steps + 1)]
    whole, prefill = ranges.prepare(f"round {index}"), ranges.prepare("prefill")
    gc.collect()
    push(whole)
    slots[1] = now()
    engine.reset()
    push(prefill)
    slots[2] = now()
    rows.append(engine.prefill(prompt))
    slots[HEADER] = now()
    pop()
    for i, prepared in enumerate(decode, HEADER + 1):
        push(prepared)
        rows.append(step())
        pop()
        slots[i] = now()
    result = _finish(engine, rows)
    pop()
    return result


def _finish(engine: Engine, rows: list[Sequence[int] | None]) -> RoundResult:
    """Wait for a free-running engine's device, and take the tokens that it kept."""
    done = [row for row in rows if row is not None]
    synchronous = len(done) == len(rows)
    if not synchronous:
        if not isinstance(engine, FreeRunningEngine):
            raise TypeError("decode_step returned None but the engine has no finish_round")
        late = engine.finish_round()
        done = [*done, *late]
        if len(done) != len(rows):
            raise ValueError(f"finish_round gave {len(late)} rows for {len(rows)} steps")
    return RoundResult(time.monotonic_ns(), done, synchronous)


@dataclass
class Met:
    """The round that met each KV length of the timed ones for the first time."""

    steps: int
    step_ns: int
    """Median."""
    decode_ns: int
    """All its steps."""


@dataclass
class WarmUp:
    """How warm-up went: ``medians_ns`` has one entry a comparable warm-up round."""

    steps: int
    stable: bool
    medians_ns: list[int]
    prefill_ns: int
    """Of the last round, like ``step_ns``."""
    step_ns: int
    """Median."""
    lacking: int = 0
    """Steps of the engine's own minimum that the time had no room for."""
    met: Met | None = None


SHORT_ROUND = 64
"""Decode steps of a warm-up round after the first long one."""
PATIENCE = 3
"""An engine that has not made its minimum of steps has so many times as long: ExLlamaV2 captures
its graphs at the 205th call, and rounds timed before that are of another engine."""
TOLERANCE = 0.03
"""Medians of two consecutive warm-up rounds this close count as stable."""


def warm_up(
    engine: Engine,
    prompt: Prompt,
    steps: int,
    board: StampBoard,
    min_steps: int,
    max_seconds: float,
    tell: Callable[[int, bool], None],
    round_s: float | None = None,
    meet: bool = False,
) -> WarmUp:
    """Run rounds until the step time is stable and the engine's own minimum is reached.

    A few steps come first: on a busy machine 64 may take minutes. The next round has the length of
    the timed ones, so that whatever depends on the KV length (a CUDA graph a bucket, an autotuner a
    shape) happens here. Those after it are short and all of one length: their medians are
    comparable, which those of a growing KV cache would not be. Where the first few steps are slow
    and later ones are not (kernels are loaded, clocks rise), rounds become longer again: short ones
    with a prefill each would not make ``min_steps`` in the time.

    Args:
        min_steps: decode steps that the engine needs at the least.
        max_seconds: no round is begun that would end later, stable or not (the run says so);
            ``PATIENCE`` times as late where ``min_steps`` are not made.
        tell: called after each round with (steps so far, stable).
        round_s: rounds will be shortened to take no longer than this; ``None``: they have ``steps``
            steps, and one of that length is made where it fits into ``max_seconds``.
        meet: a step does something once for each KV length. Then the round of the timed length is
            made in any case, and its steps do not count into ``max_seconds``. With ``round_s`` the
            few steps are made twice, since only the second time says what a step takes, and the
            round is no longer than fits into ``PATIENCE`` times ``max_seconds`` at the pace of the
            first time.
    """
    begin, done, medians, free_s = time.monotonic(), 0, list[int](), 0.0
    met: Met | None = None
    probes = [SHORTEST] * (0 if steps <= SHORTEST else 1 if not meet else 2 if round_s else 0)
    whole, longest = steps, 0
    first_step_ns = 0
    while True:
        length = probes.pop() if (probing := bool(probes)) else whole
        round_begin = time.monotonic()
        board.clear()
        timed_round(engine, prompt, length, board)
        took_s = time.monotonic() - round_begin
        done += length
        stamps = board.slots[HEADER : HEADER + 1 + length]
        laps = sorted(b - a for a, b in pairwise(stamps))
        prefill_ns = stamps[0] - board.slots[2]
        stamps.release()
        step_ns = laps[len(laps) // 2] if laps else 0
        first_step_ns = first_step_ns or step_ns
        meeting = meet and met is None and not probing
        if meeting:
            met = Met(length, step_ns, sum(laps))
            free_s = met.decode_ns / 1e9
            took_s = prefill_ns / 1e9
        longest = max(longest, length)
        if not probing:
            whole = min(whole, SHORT_ROUND)
        if laps and not probing and not meeting and length == whole:
            medians.append(step_ns)
        stable = len(medians) > 1 and abs(medians[-1] / max(1, medians[-2]) - 1) <= TOLERANCE
        tell(done, stable)
        spent = time.monotonic() - begin - free_s
        # What a next round would take at the least, where it is like this one.
        next_s = 0.0 if probing else took_s
        limit = max_seconds if done >= min_steps else PATIENCE * max_seconds
        ready = met is not None or not meet
        if ready and ((stable and done >= min_steps) or spent + next_s > limit):
            lacking = max(0, min_steps - done)
            stable = stable and not lacking
            return WarmUp(done, stable, medians, prefill_ns, step_ns, lacking, met)
        if probes:
            continue

        def seconds(n: int, each: int, first: int = prefill_ns) -> float:
            return (first + n * each) / 1e9

        now, before = partial(seconds, each=step_ns), partial(seconds, each=first_step_ns)
        left_s = (max_seconds if probing else limit) - spent
        if round_s is None:
            fitting = fitting_length(now, steps, left_s)
        else:
            fitting = round_length(now, steps, round_s, round_s / FINE)
        if probing:
            meeting_s = PATIENCE * max_seconds
            whole = fitting_length(before, fitting, meeting_s) if meet else fitting
        elif fitting > longest and met is None and now(fitting) <= left_s:
            whole = fitting
            medians.clear()
