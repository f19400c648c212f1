"""A ratio's verdict: faster, slower, the same within so much, or that it cannot be told yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llmprof.analysis.timing.observed import PROCESS_PAIRS, Observed, more_values
from llmprof.analysis.timing.stats import Estimate
from llmprof.records import Maybe, Unavailable

Outcome = Literal["faster", "slower", "same", "inconclusive"]
"""Of B against A, in tok/s."""

SAME_WITHIN = 0.03
"""An interval, allowance included, that stays this close to 1 shows equivalence (two one-sided
tests; Schuirmann, J. Pharmacokin. Biopharm. 15, 1987). A run that has reached its precision of 1 %
reaches to 2 % from its own ratio."""


CLEAR = 0.15
"""A difference is called where the 95 % interval is clear of 1 by this share of its half-width, as
one of about 97 % would be. Clear of 1 alone, an engine would differ from itself in one of twenty
runs by construction (``docs/truth.md``)."""


@dataclass(frozen=True)
class Verdict:
    """What may be said."""

    outcome: Outcome
    text: str
    same_within: Maybe
    """The farthest end of the interval from 1, allowance included, 0–1: where ``same`` holds."""
    needed_s: Maybe
    """What an inconclusive comparison takes further, of the same rounds, s."""


def judge(
    a: str,
    b: str,
    ratio: Estimate,
    seen: Observed | None,
    allowance: float,
    value_s: float | None,
) -> Verdict:
    """The verdict on tok/s of ``b`` / tok/s of ``a``.

    Args:
        seen: where the ratio is over paired rounds.
        allowance: for processes, logarithmic.
        value_s: what one of the interval's values took, s.
    """
    value, low, high = ratio.value, ratio.low, ratio.high
    if isinstance(value, Unavailable):
        return _open(f"{a} and {b} cannot be compared: {value.reason}", value)
    if isinstance(low, Unavailable) or isinstance(high, Unavailable):
        why = low.reason if isinstance(low, Unavailable) else ""
        needed = _needed(math.log(value), seen, allowance, value_s)
        text = f"inconclusive: {b} / {a} is {value:.2f}×, but without an interval ({why})"
        return _open(text + _more(needed), needed)
    far = max(abs(math.log(low) - allowance), abs(math.log(high) + allowance))
    within = math.expm1(far)
    clear = allowance + CLEAR * math.log(high / low) / 2
    if math.log(low) - clear > 0 or math.log(high) + clear < 0:
        return _different(a, b, value, low, high)
    digits = 3 if high - low < 0.02 else 2
    interval = f"{low:.{digits}f}–{high:.{digits}f}"
    if within <= SAME_WITHIN:
        shown = math.ceil(within * 1000) / 10
        text = f"{a} and {b} are the same within {shown:.1f} % (95 %: {interval})"
        return Verdict("same", text, within, Unavailable("it is told"))
    needed = _needed(math.log(value), seen, allowance, value_s)
    text = f"inconclusive: {b} / {a} is {value:.{digits}f}× (95 %: {interval})"
    return _open(text + _more(needed), needed)


def _different(a: str, b: str, value: float, low: float, high: float) -> Verdict:
    outcome: Outcome = "faster" if value > 1 else "slower"
    if value < 1:
        a, b, value, low, high = b, a, 1 / value, 1 / high, 1 / low
    digits = 3 if value < 1.1 else 2  # a ratio that was seen to differ never reads 1.00
    interval = f"{low:.{digits}f}–{high:.{digits}f}"
    text = f"{b} is {value:.{digits}f}× as fast as {a} (95 %: {interval})"
    no = Unavailable("they differ")
    return Verdict(outcome, text, no, no)


def _open(text: str, needed: Maybe) -> Verdict:
    return Verdict("inconclusive", text, Unavailable("it cannot be told"), needed)


def _needed(log: float, seen: Observed | None, allowance: float, value_s: float | None) -> Maybe:
    """From how far the interval must shrink to be clear of 1, or to stay near it, whichever is
    sooner."""
    if seen is None or value_s is None:
        return Unavailable("the rounds are not paired: what more it takes is not known")
    room = max((abs(log) - allowance) / (1 + CLEAR), math.log1p(SAME_WITHIN) - allowance - abs(log))
    if room <= 0:
        return Unavailable(f"only {PROCESS_PAIRS} process pairs or more could tell (--processes 8)")
    more = more_values(seen, room)
    if more is None:
        return Unavailable("too few values for a guess")
    return more * value_s


def _more(needed: Maybe) -> str:
    if isinstance(needed, Unavailable):
        return f"; {needed.reason}" if "--processes" in needed.reason else ""
    if needed > 3600:
        return f"; about {needed / 3600:.0f} h more would tell: quieten the machine"
    if needed > 120:
        return f"; about {math.ceil(needed / 60)} min more would tell"
    return f"; about {max(1, math.ceil(needed))} s more would tell"
