"""Letters and roles of kernel categories. Colour is never the only carrier: the letter says it."""

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
OTHER: Final = "O"


def category_letter(category: str) -> str:
    """One letter; a blank for idle time."""
    return " " if category == IDLE else LETTERS.get(category, OTHER)


def category_role(category: str) -> str:
    """The palette's role of a category."""
    return "warn" if category == IDLE else f"category{LETTERS.get(category, OTHER)}"
