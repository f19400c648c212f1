"""What every engine decodes: the same token ids, the same lengths. Standard library only."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmprof.errors import UsageError

PROMPT_ID_FLOOR = 3
"""Seeded ids start here: 0–2 are unk/bos/eos or pad in every Llama vocabulary."""


@dataclass(frozen=True)
class Workload:
    """A frozen value with a hash.

    ``prompt_ids`` holds one row per sequence (``batch`` rows of equal length).
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    decode_len: int = 64
    """Decode steps a round, EOS ignored: every round makes ``decode_len + 1`` tokens."""
    rounds: int | None = 16
    """Rounds of the timing pass, per engine; ``None``: as many as the run's goal takes."""
    traced_steps: int = 32
    """Decode steps of the traced pass; 0 leaves the traced pass out."""
    seed: int = 0
    prompt_text: str | None = None

    @property
    def batch(self) -> int:
        return len(self.prompt_ids)

    @property
    def prompt_len(self) -> int:
        return len(self.prompt_ids[0])

    @property
    def max_positions(self) -> int:
        """KV positions that a sequence needs: prompt + every decoded token."""
        return self.prompt_len + self.decode_len + 1

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of the ids alone: equal for every engine of every run of this prompt."""
        text = json.dumps([list(row) for row in self.prompt_ids], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def hash(self) -> str:
        """SHA-256 of everything that a fair comparison must hold equal."""
        parts = {"prompt": self.prompt_hash, "decode_len": self.decode_len, "batch": self.batch}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "prompt_ids": [list(row) for row in self.prompt_ids],
            "batch": self.batch,
            "prompt_len": self.prompt_len,
            "prompt_sha256": self.prompt_hash,
            "workload_sha256": self.hash,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Workload:
        rows = tuple(tuple(int(i) for i in row) for row in data["prompt_ids"])
        keys = ("decode_len", "rounds", "traced_steps", "seed", "prompt_text")
        return Workload(rows, **{k: data[k] for k in keys if k in data})


def seeded_ids(length: int, vocab_size: int, batch: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """``batch`` rows of ``length`` ids in [3, vocab_size), the same on every machine.

    ``random.Random`` is documented to be reproducible across Python versions for ``random()``,
    which is why the ids are made from it and not from ``randrange``.
    """
    source = random.Random(f"llmprof-{seed}")
    span = vocab_size - PROMPT_ID_FLOOR
    if span < 1:
        raise UsageError(f"vocabulary of {vocab_size} is too small for seeded prompt ids")
    return tuple(
        tuple(PROMPT_ID_FLOOR + int(source.random() * span) for _ in range(length))
        for _ in range(batch)
    )


def read_ids(path: Path) -> tuple[int, ...]:
    """Token ids from a file: a JSON list, or integers apart by white space or commas.

    Raises:
        UsageError: unreadable, empty, or not integers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(f"--prompt-ids {path}: {why}") from None
    try:
        ids = tuple(int(t) for t in text.strip().strip("[]").replace(",", " ").split())
    except ValueError:
        raise UsageError(f"--prompt-ids {path}: expected integers, as in [1, 2, 3]") from None
    if not ids or min(ids) < 0:
        raise UsageError(f"--prompt-ids {path}: needs at least one id, none of them negative")
    return ids
