"""What every engine of ours asks of a prompt. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from llmprof.errors import UsageError


def check_prompt(
    engine: str, rows: Sequence[Sequence[int]], batch: int, vocab_size: int, positions: int
) -> None:
    """Raise ``UsageError`` unless ``rows`` are ``batch`` prompts of one length that fit.

    Args:
        vocab_size: ids lie in [0, vocab_size).
        positions: of the KV cache; a prompt longer than that does not fit.
    """
    if len(rows) != batch:
        raise UsageError(f"{engine}: loaded for batch {batch}, got {len(rows)} prompts")
    length = len(rows[0])
    if not length or any(len(row) != length for row in rows):
        raise UsageError(f"{engine}: prompts of a batch must have one length, at least 1")
    if length > positions:
        raise UsageError(f"{engine}: prompt of {length} tokens, KV cache of {positions} positions")
    for row in rows:
        for token in row:
            if not 0 <= token < vocab_size:
                raise UsageError(
                    f"{engine}: token id {token} is outside the vocabulary of {vocab_size}"
                )
