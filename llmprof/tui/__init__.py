"""The Textual app. Only here are textual and rich imported, and only once it is to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmprof.step_records import (
    AUTO_STEPS,
    StepChoice,
)

if TYPE_CHECKING:
    from llmprof.analysis.view.snapshot import SnapshotSource


def run_app(
    source: SnapshotSource,
    *,
    refresh_hz: float | None = None,
    keymap: Mapping[str, str] | None = None,
    steps: StepChoice = AUTO_STEPS,
) -> int:
    """Show ``source`` until the user quits; the exit code (see ``errors``)."""
    from llmprof.tui.shell.refresh import prepare

    prepare(os.environ)
    from llmprof.tui.shell.app import LlmprofApp
    from llmprof.tui.shell.hangup import watch_terminal

    watch_terminal()
    app = LlmprofApp(source, refresh_hz=refresh_hz, keymap=keymap, steps=steps)
    result = app.run()
    return result if result is not None else app.return_code or 0
