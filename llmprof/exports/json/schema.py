"""The JSON Schema of ``llmprof --headless --json``, as ``llmprof schema`` prints it."""

from __future__ import annotations

from pathlib import Path


def text() -> str:
    """JSON Schema 2020-12 of the report document."""
    return Path(__file__).with_name("schema.json").read_text(encoding="utf-8")
