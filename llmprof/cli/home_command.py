"""``llmprof`` in a terminal without arguments: what there is to do, and the runs that there are."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from llmprof.errors import EXIT_OK, LlmprofError, UsageError


def home(run_here: Callable[[], int | None]) -> int:
    """Ask until something was done.

    Args:
        run_here: the setup screen and the run; ``None``: it was left.
    """
    folders = run_folders()
    while True:
        wish = ask(folders, ("run", "record", "open", "sweep"))
        if wish is None:
            return EXIT_OK
        kind, text = wish
        if kind == "run":
            code = run_here()
            if code is not None:
                return code
            continue
        return command(kind, text)


def command(kind: str, text: str) -> int:
    """Do what was asked for, as if it had been typed."""
    from llmprof.cli import main

    if kind == "open":
        words = ["open", str(Path(text).expanduser())]
    else:
        try:
            typed = shlex.split(text)
        except ValueError as why:
            raise UsageError(f"{kind}: {why}") from None
        words = [kind, "--", *typed] if kind == "record" else [kind, *typed]
    return main(words)


def ask(folders: list[Path], doors: tuple[str, ...]) -> tuple[str, str] | None:
    """(kind, text) of the user's wish; ``None`` when left."""
    from llmprof.tui.shell.refresh import prepare

    prepare(os.environ)  # before textual is imported
    from llmprof.sweep.recent import everything
    from llmprof.tui.home.screen import HomeApp
    from llmprof.tui.shell.hangup import watch_terminal

    watch_terminal()
    named = " and ".join(str(folder) for folder in folders)
    app = HomeApp(lambda: everything(folders), doors, named)  # type: ignore[arg-type]
    wish = app.run()
    return None if wish is None else (wish.kind, wish.text)


def list_runs(folders: list[Path]) -> int:
    """``llmprof open`` without a file: choose one of the runs; without a terminal, a list."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        wish = ask(folders, ("open",))
        return EXIT_OK if wish is None else command(*wish)
    from llmprof.analysis.view.recent import age_words
    from llmprof.sweep.recent import everything

    found = list(everything(folders))
    if not found:
        raise LlmprofError(f"no run in {' or '.join(str(folder) for folder in folders)}")
    for run in found:
        who = " vs ".join(run.engines)
        print("\t".join((str(run.path), age_words(run.age_s), who, run.verdict)))
    return EXIT_OK


def run_folders() -> list[Path]:
    """Where runs are: the data folder, where runs without a name go, and the current folder."""
    import platformdirs

    return [Path(platformdirs.user_data_dir("llmprof")) / "runs", Path.cwd()]
