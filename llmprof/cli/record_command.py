"""``llmprof record -- COMMAND``: record a program that knows nothing of llmprof."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmprof.errors import RunFileError, UsageError

if TYPE_CHECKING:
    from llmprof.recording.plan import Limit, RecordPlan
    from llmprof.recording.run import Recording
    from llmprof.recording.status import Outcome
    from llmprof.recording.terminal import OwnTerminal
    from llmprof.tracers.pyspy.tracer import HostPlan

_LIMIT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(s|ms|min|steps?)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "llmprof record [options] -- COMMAND…"
    parser.add_argument("-o", "--output", metavar="RUN.sqlite", help="the run file")
    parser.add_argument(
        "--trace",
        choices=("steps", "kernels", "full", "all"),
        default="full",
        help="steps: NVTX only; kernels: GPU work; full: and the calls that launch it and wait"
        " (default); all: every API call",
    )
    parser.add_argument("--after", metavar="30s|200steps", help="start recording then")
    parser.add_argument("--for", dest="length", metavar="10s|64steps", help="record for so long")
    parser.add_argument("--gpus", metavar="0,1", help="keep work on these GPUs only")
    parser.add_argument(
        "--host",
        metavar="HZ",
        nargs="?",
        const="auto",
        help="host stacks a second of Python processes that launch (py-spy); without a number as"
        " many as the machine bears",
    )
    parser.add_argument(
        "--bandwidth", action="store_true", help="sample DRAM and SM counters of the GPUs too"
    )
    parser.add_argument(
        "--no-detach",
        action="store_false",
        dest="detach",
        help="leave CUPTI in the program while the window is closed: without this option it is"
        " taken out (CUDA 13.0 and later), and the program runs as before",
    )
    parser.add_argument("--headless", action="store_true", help="no live view")
    parser.add_argument(
        "--twice",
        action="store_true",
        help="run the command again without tracing kernels: states the slowdown",
    )
    parser.add_argument("program", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)


def record(arguments: argparse.Namespace) -> int:
    plan = plan_of(arguments)
    from llmprof.recording.run import Recording, check

    recording = terminal = None
    try:
        check(plan)  # before a view is opened
        if not arguments.headless and _has_terminal():
            terminal = _own_terminal()
        recording = Recording(plan, terminal)
        outcome = recording.run() if terminal is None else _in_view(plan, recording, terminal)
    except BaseException:
        made = arguments.output is None or (recording is not None and recording.made)
        if made and (recording is None or recording.status is None):
            with suppress(OSError):  # the program was not started
                plan.output.unlink()
        raise
    _say(outcome, plan)
    if terminal is not None:
        _show(plan.output)
    return outcome.exit_code


def _has_terminal() -> bool:
    """Somebody sees a live view: not of a job in the background, which it would stop."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # it is not our controlling terminal
        return True


def _own_terminal() -> OwnTerminal | None:
    from llmprof.recording.terminal import OwnTerminal

    size = os.get_terminal_size()
    try:
        return OwnTerminal(max(4, size.lines - 8), size.columns)
    except OSError as why:  # a container without /dev/pts, or none left
        print(f"llmprof: no live view, no pseudo terminal: {why.strerror or why}", file=sys.stderr)
        return None


def _show(path: Path) -> None:
    """What was recorded, as ``llmprof open`` shows it: nobody should have to type its name."""
    from llmprof.analysis.view.frames.live import RunDataSource
    from llmprof.analysis.view.opening import open_run
    from llmprof.config import load_config
    from llmprof.tui import run_app

    data = open_run(path)
    if data.engines:
        run_app(RunDataSource(data), keymap=load_config().keys)


def _in_view(plan: RecordPlan, recording: Recording, terminal: OwnTerminal) -> Outcome:
    """Beside a live view. The program has a terminal of its own; what it wrote comes afterwards."""
    from llmprof.tui.shell.refresh import prepare

    prepare(os.environ)
    from llmprof.tui.recording.app import RecordApp
    from llmprof.tui.shell.hangup import watch_terminal

    trouble: list[BaseException] = []
    asked = 0

    def work() -> None:
        try:
            recording.run()
        except BaseException as why:  # noqa: BLE001 - raised again where the user sees it
            trouble.append(why)

    def stop() -> None:
        nonlocal asked
        asked += 1
        recording.signal((signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[min(asked, 3) - 1])

    def pass_on(number: int, frame: object) -> None:
        recording.signal(number)

    thread = threading.Thread(target=work, name="recording")
    app = RecordApp(
        command=" ".join(plan.command),
        file=str(plan.output),
        status=lambda: recording.status,
        output=terminal.lines,
        toggle=recording.toggle_window,
        stop=stop,
        resize=terminal.resize,
        done=lambda: not thread.is_alive(),
    )
    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGHUP)}
    thread.start()
    # Its SIGTERM goes to the program. What was recorded is then written, however long that takes.
    watch_terminal(closing=thread.join)
    try:
        app.run()
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stdout.buffer.write(terminal.close())
        sys.stdout.flush()
    if trouble:
        raise trouble[0]
    return recording.outcome


def plan_of(arguments: argparse.Namespace) -> RecordPlan:
    """Raises ``UsageError`` for the first thing that is wrong."""
    from llmprof.recording.plan import RecordPlan

    command = list(arguments.program)
    if not command:
        raise UsageError("record what? llmprof record [options] -- COMMAND…")
    return RecordPlan(
        command=tuple(command),
        level=arguments.trace,
        after=_limit("--after", arguments.after),
        length=_limit("--for", arguments.length),
        gpus=_gpus(arguments.gpus),
        host=_host(arguments.host),
        bandwidth=arguments.bandwidth,
        detach=arguments.detach,
        twice=arguments.twice,
        output=_output(arguments.output, command[0]),  # last: it makes a file
    )


def _limit(option: str, text: str | None) -> Limit | None:
    from llmprof.recording.plan import Limit

    if text is None:
        return None
    match = _LIMIT.fullmatch(text.strip())
    if match is None or (match[2].startswith("step") and "." in match[1]):
        raise UsageError(f"{option} {text}: expected a time (30s, 500ms, 2min) or 200steps")
    number, unit = float(match[1]), match[2]
    if not number and option == "--for":
        raise UsageError(f"{option} {text}: nothing would be recorded")
    if unit.startswith("step"):
        return Limit(steps=int(number))
    return Limit(seconds=number * {"ms": 1e-3, "s": 1.0, "min": 60.0}[unit])


def _gpus(text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(f"--gpus {text}: expected numbers, as in 0,1")
    return frozenset(map(int, parts))


def _host(text: str | None) -> HostPlan | None:
    from llmprof.tracers.pyspy.tracer import MAX_RATE_HZ, HostPlan, default_rate_hz

    if text is None:
        return None
    rate = default_rate_hz() if text == "auto" else 0
    if text.isascii() and text.isdecimal() and len(text) < 6:
        rate = int(text)
    if not 0 < rate <= MAX_RATE_HZ:
        raise UsageError(f"--host {text}: give 1 to {MAX_RATE_HZ} samples a second")
    return HostPlan(rate)


def _output(given: str | None, command: str) -> Path:
    if given is not None:
        if Path(given).suffix != ".sqlite":
            raise UsageError(f"-o {given}: name it *.sqlite, nsys stats refuses other names")
        return Path(given)
    from llmprof.newfiles import first_free

    stem = time.strftime("%Y-%m-%dT%H-%M-%S") + "-" + (Path(command).name[:40] or "program")
    try:
        return first_free(Path(), stem, ".sqlite")
    except OSError as why:
        raise UsageError(f"no run file can be created here: {why.strerror}; use -o") from None


def _say(outcome: Outcome, plan: RecordPlan) -> None:
    """On stderr, behind what the program has said."""
    from llmprof.plaintext import one_line

    for text in dict.fromkeys([*outcome.warnings, *_not_there(plan)]):
        print(f"llmprof: {one_line(text, 400)}", file=sys.stderr)
    for line in outcome.summary:
        print(f"llmprof: {one_line(line, 400)}", file=sys.stderr)
    print(f"llmprof: run file {one_line(str(plan.output))}", file=sys.stderr, flush=True)


def _not_there(plan: RecordPlan) -> list[str]:
    """Why something that was asked for is not in the run file."""
    from llmprof.runfile.reader import RunFileReader

    wanted = {"kernels": "kernels"}
    if plan.host:
        wanted["host"] = "host stacks"
    if plan.bandwidth:
        wanted["pm"] = "counters of the GPU"
    try:
        with RunFileReader(plan.output) as reader:
            missing = reader.run_data().missing
    except RunFileError:  # what could not be written was said
        return []
    return [
        f"{'' if row.scope == 'run' else row.scope + ': '}no {wanted[row.name]}: {row.reason}"
        for row in missing
        if row.name in wanted
    ]
