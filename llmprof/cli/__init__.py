"""The command line. Importing this is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from llmprof.errors import EXIT_INTERRUPTED, EXIT_NOTHING_RAN, EXIT_USAGE, LlmprofError

TYPE_CHECKING = False  # as type checkers read it; importing typing is a tenth of `llmprof --help`
if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is ``errors.EXIT_*``. Errors are one line on stderr."""
    hear_of_children()
    return run_command_line(list(sys.argv[1:] if argv is None else argv))


def hear_of_children() -> None:
    """Some that start programs (``trap '' CHLD``, services) leave SIGCHLD ignored: the kernel then
    keeps no exit code of a child, and each looked as if it had ended well."""
    with suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def run_command_line(
    argv: list[str], check: Callable[[argparse.Namespace], None] | None = None
) -> int:
    """``main`` with a check of the parsed arguments, which may raise ``UsageError``."""
    from llmprof.cli import streams
    from llmprof.cli.parser import parse

    streams.settle()
    try:
        try:
            arguments = parse(argv)
            if check is not None:
                check(arguments)
            if hasattr(arguments, "config_file"):
                from llmprof.config import choose_file

                choose_file(arguments.config_file)
            code = int(arguments.command(arguments))
        except SystemExit as why:  # argparse: --help, or a mistake
            code = why.code if isinstance(why.code, int) else EXIT_USAGE
        streams.flush()
        return code
    except LlmprofError as why:
        from llmprof.plaintext import printable

        if isinstance(why, streams.OutputFailed):
            streams.give_up()
        print(f"llmprof: {printable(str(why))}", file=sys.stderr)
        return why.exit_code
    except (MemoryError, ImportError) as why:
        # Also SQLite's and numpy's. What was being worked on is gone by now, so there is room.
        if isinstance(why, ImportError) and "failed to map segment" not in str(why):
            raise  # not the loader's way to say that there is no memory for a library
        said = "out of memory: give it more, or less to do; what was recorded is kept"
        print(f"llmprof: {said}", file=sys.stderr)
        return EXIT_NOTHING_RAN
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `llmprof --json | head`: the reader has what it wanted.
        streams.give_up()
        return 0
