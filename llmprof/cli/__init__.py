"""The command line. Importing this is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from llmprof.errors import EXIT_INTERRUPTED, LlmprofError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is ``errors.EXIT_*``. Errors are one line on stderr."""
    from llmprof.cli.parser import parse

    arguments = parse(list(sys.argv[1:] if argv is None else argv))
    try:
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
