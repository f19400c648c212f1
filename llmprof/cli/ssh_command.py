"""The forced command of an ssh session: llmprof and nothing else.

sshd runs this instead of what the client asked for, which it leaves in ``SSH_ORIGINAL_COMMAND``
(sshd_config(5), ForceCommand). The text is split into words here and never reaches a shell. What
would let llmprof run other programs (an interpreter of the client's choice, config files that the
client can write) is off: see ``config.LOCK_VARIABLE``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from llmprof.cli import run_command_line
from llmprof.config import LOCK_VARIABLE, check_target
from llmprof.errors import EXIT_USAGE, UsageError
from llmprof.plaintext import one_line

VARIABLE = "SSH_ORIGINAL_COMMAND"
MAX_LENGTH = 16 * 1024
OUTPUTS = ("output", "artifact_path")
"""Names of parsed arguments that say where something is written."""


def words(text: str) -> list[str]:
    """Arguments for llmprof from what the client asked for; ``[]`` for a plain login.

    Raises:
        UsageError: another program, unbalanced quotes, a control character, or far too long.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"the command has {len(text)} characters; at most {MAX_LENGTH}")
    if any(character < " " or character == "\x7f" for character in text):
        raise UsageError("the command holds a control character")
    try:
        found = shlex.split(text)
    except ValueError as why:
        raise UsageError(f"{one_line(text, 80)}: {why}") from None
    if found and found[0] != "llmprof":
        raise UsageError(f"{one_line(found[0], 80)!r}: this account runs llmprof only")
    return found[1:]


def check_output(arguments: argparse.Namespace) -> None:
    """No output outside the home, no interpreter of the client's choice.

    Raises:
        UsageError: one of them.
    """
    for name in OUTPUTS:
        if (output := getattr(arguments, name, None)) is not None:
            check_target(output)
    if getattr(arguments, "python", None) is not None:
        raise UsageError("--python: this account cannot choose the interpreter")


def main() -> int:
    os.environ[LOCK_VARIABLE] = "1"
    try:
        argv = words(os.environ.get(VARIABLE, ""))
    except UsageError as why:
        print(f"llmprof: {why}", file=sys.stderr)
        return EXIT_USAGE
    return run_command_line(argv, check_output)


if __name__ == "__main__":
    sys.exit(main())
