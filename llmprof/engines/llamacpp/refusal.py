"""llama.cpp's own words when it does not load a file. Imported late: loads llama_cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

from llmprof.errors import ModelError
from llmprof.plaintext import one_line

_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h
_MARK = "error loading model: "


@contextmanager
def errors_heard() -> Iterator[list[str]]:
    """The errors that llama.cpp logs meanwhile; they are not printed."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def hear(level: int, text: bytes, data: Any) -> None:
        if level == _ERROR:
            lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(hear, None)
    try:
        yield lines
    finally:
        # What the package itself sets at import.
        from llama_cpp._logger import llama_log_callback

        llama_cpp.llama_log_set(llama_log_callback, None)


def not_loaded(path: str, lines: list[str]) -> ModelError:
    """``lines`` are those of ``errors_heard``; the one with the cause is the first."""
    cause = next((line.partition(_MARK)[2] for line in lines if _MARK in line), "")
    cause = cause.strip() or next((line.strip() for line in lines if line.strip()), "")
    why = one_line(cause, 300) or "corrupt, or newer than the installed llama-cpp-python"
    return ModelError(f"{one_line(path)}: llama.cpp does not load this file ({why})")
