"""``llmprof schema``."""

from __future__ import annotations

import argparse
import sys

from llmprof.errors import EXIT_OK


def schema(arguments: argparse.Namespace) -> int:
    from llmprof.exports.json.schema import text

    sys.stdout.write(text())
    return EXIT_OK
