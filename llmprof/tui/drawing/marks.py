"""Letters and roles of kernel categories and kinds of host time; colour never stands alone."""

from __future__ import annotations

from typing import Final

from llmprof.analysis.device.naming.categories import IDLE

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
    "communication": "X",
    "MoE": "M",
    "SSM": "T",
    "LoRA": "L",
    "convolution": "V",
}
OTHER: Final = "O"


def category_letter(category: str) -> str:
    """One letter; a blank for idle time."""
    return " " if category == IDLE else LETTERS.get(category, OTHER)


def category_role(category: str) -> str:
    """The palette's role of a category."""
    return "warn" if category == IDLE else f"category{LETTERS.get(category, OTHER)}"


HOST_LETTERS: Final = {
    "launch": "l",
    "sync": "s",
    "graph update": "u",
    "allocator": "m",
    "wait": "w",
    "gil": "g",
    "native": "n",
    "host": "h",
}
"""Small ones, as kernels have the capitals: one legend holds both."""


def host_role(kind: str) -> str:
    """The palette's role of a kind of host time."""
    return f"host{HOST_LETTERS[kind]}"
