"""The Textual app. Only here are textual and rich imported, and only once it is to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.records.steps import (
    AUTO_STEPS,
    StepChoice,
)

if TYPE_CHECKING:
    from llmprof.analysis.view.frames.snapshot import SnapshotSource
    from llmprof.sweep.store import Store


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


def run_sweep_app(store: Store, state: Any) -> tuple[Path | None, Any]:
    """Show a sweep until the user quits or opens a point.

    Args:
        state: as it was returned before; ``None``: from the start.

    Returns:
        The run file to open, ``None`` when the user has quit; and the state to come back to.
    """
    from llmprof.tui.shell.refresh import prepare

    prepare(os.environ)
    from llmprof.tui.shell.hangup import watch_terminal
    from llmprof.tui.sweep.app import SweepApp
    from llmprof.tui.sweep.page import SweepView

    watch_terminal()
    return SweepApp(store, state or SweepView()).run() or (None, state)
