"""``llmprof open``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from llmprof.errors import EXIT_OK, UsageError


def open_file(arguments: argparse.Namespace) -> int:
    from llmprof.analysis.view.frames.live import RunDataSource
    from llmprof.analysis.view.frames.several import SeveralRuns
    from llmprof.analysis.view.opening import open_run
    from llmprof.cli.files.opening import open_files
    from llmprof.cli.files.step_choice import step_choice
    from llmprof.config import load_config

    if not arguments.file:
        from llmprof.cli.home_command import list_runs, run_folders

        return list_runs(run_folders())
    folder = Path(arguments.file[0])
    if len(arguments.file) == 1 and folder.is_dir():
        from llmprof.sweep.recent import everything, is_sweep

        if is_sweep(folder):
            from llmprof.cli.home_command import command

            return command("sweep", f"view {shlex.quote(str(folder))}")
        if any(True for _ in everything([folder], 1)):
            from llmprof.cli.home_command import list_runs

            return list_runs([folder])
    steps = step_choice(arguments)
    runs = [open_run(file, steps) for file in open_files([Path(f) for f in arguments.file])]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("llmprof open needs a terminal; llmprof --headless --from FILE does not")
    from llmprof.tui import run_app

    source = RunDataSource(runs[0]) if len(runs) == 1 else SeveralRuns(runs)
    run_app(source, keymap=load_config().keys, steps=steps)
    return EXIT_OK
