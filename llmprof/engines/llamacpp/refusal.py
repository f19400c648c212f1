"""llama.cpp's own words when it does not load a file."""

from __future__ import annotations

from llmprof.errors import ModelError
from llmprof.plaintext import one_line

_MARK = "error loading model: "


def not_loaded(path: str, lines: list[str], binding: str) -> ModelError:
    """``lines`` are the errors that llama.cpp logged; the one with the cause is the first."""
    cause = next((line.partition(_MARK)[2] for line in lines if _MARK in line), "")
    cause = cause.strip() or next((line.strip() for line in lines if line.strip()), "")
    why = one_line(cause, 300) or f"corrupt, or newer than the installed {binding}"
    return ModelError(f"{one_line(path)}: llama.cpp does not load this file ({why})")
