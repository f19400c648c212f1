"""``llmprof doctor``."""

from __future__ import annotations

import argparse
import json
import sys

from llmprof.errors import EXIT_OK


def doctor(arguments: argparse.Namespace) -> int:
    from llmprof.config import load_config
    from llmprof.doctor import checks as examination
    from llmprof.engines.registry import engine_names

    config = load_config()
    pythons = {name: config.pythons.get(name, sys.executable) for name in engine_names()}
    checks = examination.examine(pythons)
    if arguments.banner:
        from llmprof.cli.machine import banner

        print(banner.render(checks))
    elif arguments.json:
        json.dump(examination.to_json(checks), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        print(examination.render(checks))
    return EXIT_OK
