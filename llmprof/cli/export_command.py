"""``llmprof export FILE… --to FORMAT [-o OUT]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmprof.errors import EXIT_OK
from llmprof.plaintext import one_line


def export(arguments: argparse.Namespace) -> int:
    from llmprof.config import check_target, locked
    from llmprof.exports.formats import FORMATS, default_output, export_runs
    from llmprof.runfile.foreign.nsys_rep import readable

    files = [readable(Path(name)) for name in arguments.files]
    out = arguments.output
    if out is None and arguments.to in FORMATS:
        out = default_output(Path(arguments.files[0]), arguments.to)
        if locked():
            check_target(out)
    made = export_runs(files, arguments.to, out or "", _progress, arguments.step_range)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(f"llmprof: wrote {one_line(str(made))}", file=sys.stderr)
    return EXIT_OK


def _progress(what: str, share: float | None) -> None:
    """One line that is written over; nothing into a pipe or a log."""
    if sys.stderr.isatty():
        percent = "" if share is None else f" {share:4.0%}"
        print(f"\r\x1b[K{one_line(what, 60)}{percent}", end="", file=sys.stderr, flush=True)
