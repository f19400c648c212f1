"""Do engines compute the same thing, and does one engine repeat itself. A check, not a score.

Kernels with atomics and other summation orders flip near ties, after which greedy texts part for
good: a long common prefix says more than the share of equal positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmprof.records import EngineRecord, RunData, Unavailable


@dataclass(frozen=True)
class TokenAgreement:
    """Greedy tokens of engine ``b`` beside those of engine ``a``, round by round."""

    a: str
    b: str
    common_prefix: int | Unavailable
    """Tokens equal from the start, in the worst sequence of the worst round."""
    agreement: float | Unavailable
    """Share of positions with equal tokens, over all rounds and sequences, 0–1."""
    length: int = 0
    """Tokens compared of each sequence."""
    rounds: int = 0


@dataclass(frozen=True)
class Determinism:
    """Does the engine decode the same tokens in every round."""

    repeats: bool | Unavailable
    common_prefix: int | Unavailable
    """Tokens equal from the start in all rounds."""
    rounds: int = 0


Rows = list[list[int]]


def agreement_to_first(data: RunData) -> tuple[TokenAgreement, ...]:
    """Every other engine against the first."""
    return tuple(agreement(data, data.engines[0], other) for other in data.engines[1:])


def agreement(data: RunData, a: EngineRecord, b: EngineRecord) -> TokenAgreement:
    """Two engines of a run; ``Unavailable`` unless both hold the same real weights."""
    ids = [engine.info.weights_id if engine.info else None for engine in (a, b)]
    if None in ids or ids[0] != ids[1]:
        words = "random or unknown" if None in ids else "different"
        why = Unavailable(f"only for engines that hold the same weights; these are {words}")
        return TokenAgreement(a.label, b.label, why, why)
    rows_a, rows_b = _tokens(data, a), _tokens(data, b)
    pairs = [(rows_a[i], rows_b[i]) for i in sorted(rows_a.keys() & rows_b.keys())]
    counted = _count(pairs)
    if counted is None:
        why = Unavailable("no round is complete in both engines")
        return TokenAgreement(a.label, b.label, why, why)
    prefix, share, length = counted
    return TokenAgreement(a.label, b.label, prefix, share, length, len(pairs))


def determinism(data: RunData, engine: EngineRecord) -> Determinism:
    """Every complete round of an engine against its first one."""
    rounds = list(_tokens(data, engine).values())
    counted = _count([(rounds[0], other) for other in rounds[1:]]) if rounds else None
    if counted is None:
        why = Unavailable("needs two complete rounds with tokens")
        return Determinism(why, why, len(rounds))
    prefix, share, _ = counted
    return Determinism(share == 1, prefix, len(rounds))


def _tokens(data: RunData, engine: EngineRecord) -> dict[int, Rows]:
    """Round index → tokens of the complete timing rounds that have some."""
    rounds = data.rounds_of(engine.engine_id)
    return {r.index: r.tokens for r in rounds if r.complete and any(r.tokens)}


def _count(pairs: Iterable[tuple[Rows, Rows]]) -> tuple[int, float, int] | None:
    """Smallest common prefix, share of equal positions, length of the shortest sequence."""
    equal = positions = 0
    prefixes, lengths = [], []
    for rows_a, rows_b in pairs:
        for row_a, row_b in zip(rows_a, rows_b, strict=False):
            same = [x == y for x, y in zip(row_a, row_b, strict=False)]
            equal += sum(same)
            positions += len(same)
            prefixes.append(same.index(False) if False in same else len(same))
            lengths.append(len(same))
    return (min(prefixes), equal / positions, min(lengths)) if positions else None
