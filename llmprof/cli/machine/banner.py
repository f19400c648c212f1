"""What a login shows: ``llmprof doctor --banner``. A few lines, made from doctor's findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmprof import __version__
from llmprof.doctor.checks import Check
from llmprof.plaintext import one_line

MODELS = Path("/models")
_SHOWN_MODELS = 6
_WIDTH = 76


def render(checks: Sequence[Check], models: Path = MODELS) -> str:
    """GPU, engines that start, models found, and what to type.

    Args:
        checks: from ``doctor.examine``.
        models: the folder whose entries are models.
    """
    gpu = next((check for check in checks if check.name == "gpu"), None)
    found = "not looked at" if gpu is None else gpu.detail
    lines = [f"llmprof {__version__}", _row("GPU", found), _row("engines", _engines(checks))]
    names = _models(models)
    if names is not None:
        lines.append(_row(str(models), names))
    lines.append(_row("type", "llmprof, llmprof --help, llmprof doctor"))
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return f"  {one_line(name, 12):<9} {one_line(text, _WIDTH - 12)}"


def _engines(checks: Sequence[Check]) -> str:
    names = [
        check.name.removeprefix("engine ")
        for check in checks
        if check.name.startswith("engine ") and check.status != "missing"
    ]
    return ", ".join(names) or "none; llmprof doctor says what each lacks"


def _models(folder: Path) -> str | None:
    """Entries of the models folder; ``None`` where there is no such folder."""
    if not folder.is_dir():
        return None
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as why:
        return f"cannot be read: {why.strerror}"
    more = len(names) - _SHOWN_MODELS
    shown = ", ".join(names[:_SHOWN_MODELS]) + (f" and {more} more" if more > 0 else "")
    return shown or "empty"
