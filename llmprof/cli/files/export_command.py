"""``llmprof export FILE… --to FORMAT [-o OUT]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmprof.cli.files.opening import clear, open_files, show
from llmprof.errors import EXIT_OK
from llmprof.plaintext import one_line


def export(arguments: argparse.Namespace) -> int:
    from llmprof.cli.files.step_choice import step_choice
    from llmprof.config import check_target, locked
    from llmprof.exports.formats import FORMATS, default_output, export_runs

    files = open_files([Path(name) for name in arguments.files])
    out = arguments.output
    if out is None and arguments.to in FORMATS:
        out = default_output(Path(arguments.files[0]), arguments.to)
        if locked():
            check_target(out)
    made = export_runs(files, arguments.to, out or "", show, step_choice(arguments))
    clear()
    print(f"llmprof: wrote {one_line(str(made))}", file=sys.stderr)
    return EXIT_OK
