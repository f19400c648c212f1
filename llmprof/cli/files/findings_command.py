"""``llmprof findings RUN [--json]``: what would make a token cheaper, ranked."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from llmprof.errors import EXIT_OK


def findings(arguments: argparse.Namespace) -> int:
    from llmprof.analysis.findings.ranked import find
    from llmprof.analysis.view.opening import open_run
    from llmprof.analysis.view.traced import RunTrace
    from llmprof.cli.files.opening import open_one
    from llmprof.cli.files.step_choice import step_choice

    path = open_one(Path(arguments.file))
    data = open_run(path, step_choice(arguments))
    found = find(RunTrace(path, data))
    if arguments.json:
        from llmprof.exports.json.findings import to_text

        sys.stdout.write(to_text(str(data.shown_path), found))
    else:
        from llmprof.exports.text.findings_table import render

        width = min(120, shutil.get_terminal_size((100, 24)).columns)
        sys.stdout.writelines(f"{line}\n" for line in render(found, width))
    return EXIT_OK
