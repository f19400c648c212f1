"""The Textual app. Only here are textual and rich imported, and only once it is to run."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmprof.analysis.snapshot import SnapshotSource

LOCAL_HZ = 4.0
REMOTE_HZ = 2.0


def refresh_rate(environ: Mapping[str, str]) -> float:
    """Frames a second: fewer over SSH, where each costs bytes."""
    return REMOTE_HZ if environ.get("SSH_CONNECTION") else LOCAL_HZ


def prepare(environ: MutableMapping[str, str]) -> None:
    """Make Textual frugal over SSH. It reads these when imported, so this comes first."""
    if environ.get("SSH_CONNECTION"):
        environ.setdefault("TEXTUAL_FPS", "12")
        environ.setdefault("TEXTUAL_ANIMATIONS", "none")
        environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")


def run_app(
    source: SnapshotSource,
    *,
    refresh_hz: float | None = None,
    keymap: Mapping[str, str] | None = None,
    step_range: str | None = None,
) -> int:
    """Show ``source`` until the user quits; the exit code (see ``errors``)."""
    prepare(os.environ)
    from llmprof.tui.app import LlmprofApp
    from llmprof.tui.hangup import watch_terminal

    watch_terminal()
    app = LlmprofApp(source, refresh_hz=refresh_hz, keymap=keymap, step_range=step_range)
    result = app.run()
    return result if result is not None else app.return_code or 0
