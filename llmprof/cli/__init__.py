"""The command line. Importing this is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmprof.errors import EXIT_INTERRUPTED, LlmprofError

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is ``errors.EXIT_*``. Errors are one line on stderr."""
    return run_command_line(list(sys.argv[1:] if argv is None else argv))


def run_command_line(
    argv: list[str], check: Callable[[argparse.Namespace], None] | None = None
) -> int:
    """``main`` with a check of the parsed arguments, which may raise ``UsageError``."""
    from llmprof.cli.parser import parse

    arguments = parse(argv)
    try:
        if check is not None:
            check(arguments)
        return int(arguments.command(arguments))
    except LlmprofError as why:
        from llmprof.plaintext import printable

        print(f"llmprof: {printable(str(why))}", file=sys.stderr)
        return why.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `llmprof --json | head`: the reader has what it wanted. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
