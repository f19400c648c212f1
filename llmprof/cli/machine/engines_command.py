"""``llmprof engines``."""

from __future__ import annotations

import argparse
import sys

from llmprof.errors import EXIT_OK


def engines(arguments: argparse.Namespace) -> int:
    from llmprof.config import load_config
    from llmprof.doctor import checks as examination
    from llmprof.engines.registry import engine_names

    config = load_config()
    names = sorted({*engine_names(), *config.pythons})
    pythons = {name: config.pythons.get(name, sys.executable) for name in names}
    print(examination.render(examination.engine_checks(pythons)))
    return EXIT_OK
