"""``llmprof``: a run in the TUI or headless, or a report on a recorded run."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmprof.cli.files.step_choice import step_choice
from llmprof.errors import (
    EXIT_ENGINE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_RAN,
    EXIT_OK,
    EXIT_USAGE,
    LlmprofError,
    UsageError,
)
from llmprof.records import (
    EngineRecord,
    RunState,
)
from llmprof.records.steps import (
    AUTO_STEPS,
    StepChoice,
)


def run(arguments: argparse.Namespace) -> int:
    if arguments.source is not None:
        if idle := _given(arguments):
            raise UsageError(f"--from reports on a recorded run: it takes no {', '.join(idle)}")
        from llmprof.cli.files.opening import open_one

        return report(open_one(Path(arguments.source)), arguments.json, step_choice(arguments))
    if step_choice(arguments) != AUTO_STEPS:
        option = "--step-range goes" if arguments.step_range else "--steps goes"
        raise UsageError(f"{option} with --from FILE, open, compare or export")
    headless = arguments.headless or arguments.json or not _interactive()
    from llmprof.cli.run.planning import named_run, prepare
    from llmprof.config import load_config

    if not headless and not arguments.engine and "engine" not in load_config().run:
        if arguments.argv:
            code = _set_up(arguments)
            return EXIT_OK if code is None else code
        from llmprof.cli.home_command import home

        return home(lambda: _set_up(arguments))
    with named_run(prepare(arguments)) as prepared:
        if headless:
            return _headless(prepared, arguments.json, getattr(arguments, "kept", None))
        return _in_tui(prepared)


def _set_up(arguments: argparse.Namespace) -> int | None:
    """The setup screen, then the run; ``None``: the user left."""
    from llmprof.tui.shell.refresh import prepare as be_frugal

    be_frugal(os.environ)  # before textual is imported
    from llmprof.cli.run.planning import named_run
    from llmprof.cli.run.setup_command import set_up

    chosen = set_up(arguments)
    if chosen is None:
        return None
    with named_run(chosen) as prepared:
        return _in_tui(prepared)


_REPORTS = ("source", "json", "headless", "step_range", "steps", "argv", "command")
"""What ``--from`` goes with."""


def _given(arguments: argparse.Namespace) -> list[str]:
    """Options for a run that the user has given."""
    from llmprof.cli.parser import parse

    usual = vars(parse([]))
    given = [k for k, v in vars(arguments).items() if k not in _REPORTS and v != usual[k]]
    return ["-o" if name == "output" else f"--{name.replace('_', '-')}" for name in given]


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def report(file: Path, as_json: bool, steps: StepChoice = AUTO_STEPS) -> int:
    """Print the report on a run file; the exit code is the one that the run itself had."""
    from llmprof.analysis.view.opening import open_run
    from llmprof.analysis.view.report import build
    from llmprof.analysis.view.traced import load_trace

    data = open_run(file, steps)
    built = build(data)
    trace = load_trace(built, data)
    if as_json:
        from llmprof.exports.json.report import to_document, to_text

        sys.stdout.write(to_text(to_document(built, data, trace)))
    else:
        from llmprof.exports.text.table import render

        print(render(built, min(120, shutil.get_terminal_size((100, 24)).columns), trace))
    return exit_code(data.info.state, data.engines)


def exit_code(state: RunState, engines: list[EngineRecord]) -> int:
    """The documented exit code of a run that ended so."""
    failed = [engine for engine in engines if engine.state == "failed"]
    if state == "interrupted":
        return EXIT_INTERRUPTED
    if len(failed) == len(engines) and engines:
        input_only = all(e.failure_kind in ("input", "missing-package") for e in failed)
        return EXIT_USAGE if input_only else EXIT_NOTHING_RAN
    return EXIT_ENGINE_FAILED if failed else EXIT_OK


@contextmanager
def ends_cleanly(session: Any, told: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C, a closed ssh session and a polite kill all stop the run and keep what it has.

    Args:
        told: called when a signal came, before the session is stopped.
    """
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in caught}

    first_s: float | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal first_s
        told()
        session.stop()
        # The second time it means it. timeout(1) signals its child and then the whole group: two
        # signals at once are one wish.
        if first_s is None:
            first_s = time.monotonic()
        elif time.monotonic() - first_s > 1.0:
            for again in caught:
                signal.signal(again, before[again])
            signal.raise_signal(number)

    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _headless(prepared: Any, as_json: bool, kept: Any) -> int:
    """``kept``: the workers that points of a sweep share (``series``), or ``None``."""
    from llmprof.cli.run.progress import StderrProgress
    from llmprof.session.run import Session

    session = Session(prepared.plan, [StderrProgress()], prepared.decode, kept)
    with ends_cleanly(session):
        session.run()
    return _ended(prepared.plan.output, session.engines, as_json)


def _ended(file: Path, engines: list[EngineRecord], as_json: bool) -> int:
    """The report of a run that is over, and where it is kept. Of a run in which no engine loaded,
    since an option or a model was wrong, nothing is."""
    code = report(file, as_json)
    sys.stdout.flush()
    if code == EXIT_USAGE and not any(e.load_ns or e.load_shared for e in engines):
        file.unlink(missing_ok=True)
    else:
        print(f"llmprof: run file {file}", file=sys.stderr)
    return code


def _in_tui(prepared: Any) -> int:
    from llmprof.analysis.view.frames.live import LiveFold
    from llmprof.config import load_config
    from llmprof.session.run import Session
    from llmprof.tui import run_app

    fold = LiveFold(on_stop=lambda: session.stop())
    session = Session(prepared.plan, [fold], prepared.decode)
    trouble: list[LlmprofError] = []

    def work() -> None:
        try:
            session.run()
        except LlmprofError as why:
            trouble.append(why)

    thread = threading.Thread(target=work, name="session")

    def leave() -> None:
        fold.leave = True

    with ends_cleanly(session, leave):
        thread.start()
        try:
            run_app(fold, keymap=load_config().keys)
        finally:
            session.stop()
            thread.join()
    if trouble:
        raise trouble[0]
    return _ended(prepared.plan.output, session.engines, as_json=False)
