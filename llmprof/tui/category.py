"""Letter and colour of a kernel's category: colour is never the only carrier."""

from __future__ import annotations

from typing import Final

from llmprof.analysis.categories import IDLE

LETTERS: Final = {
    "quantised GEMV/GEMM": "Q",
    "GEMM/GEMV": "G",
    "attention": "A",
    "norm": "N",
    "RoPE": "R",
    "activation/elementwise": "E",
    "KV cache": "K",
    "embedding": "B",
    "sampling": "S",
    "copy": "C",
    "quantise": "Z",
}
_OTHER: Final = "O"
"""Also for the categories of a user's own rules."""


def letter(category: str) -> str:
    return " " if category == IDLE else LETTERS.get(category, _OTHER)


def role(category: str) -> str:
    """The palette's role of a category; waiting is drawn as a warning."""
    return "warn" if category == IDLE else f"category{LETTERS.get(category, _OTHER)}"
