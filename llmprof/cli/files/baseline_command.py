"""``llmprof baseline save NAME RUN | list | show NAME``."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from llmprof.errors import EXIT_OK, UsageError
from llmprof.plaintext import one_line

if TYPE_CHECKING:
    from llmprof.baselines import Baseline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="save|list|show")
    one = what.add_parser("save", help="keep a run under a name, for the conditions it was made in")
    one.add_argument("name", metavar="NAME")
    one.add_argument("run", metavar="RUN.sqlite")
    what.add_parser("list", help="all that are kept")
    shown = what.add_parser("show", help="the conditions of each run of that name")
    shown.add_argument("name", metavar="NAME")


def baseline(arguments: argparse.Namespace) -> int:
    from llmprof.baselines import kept, save

    if arguments.what == "save":
        made = save(arguments.name, Path(arguments.run))
        print(f"baseline {made.name}: {made.path}")
        return EXIT_OK
    if arguments.what == "list":
        for entry in kept():
            print(f"{entry.name:<24}  {_when(entry)}  {one_line(str(entry.path), 200)}")
        return EXIT_OK
    found = kept(arguments.name)
    if not found:
        raise UsageError(f"no baseline {arguments.name!r}: llmprof baseline list")
    for entry in found:
        print(f"{entry.name}, {_when(entry)}: {one_line(str(entry.path), 200)}")
        for key, value in entry.conditions.items():
            print(f"  {one_line(key, 60)}: {one_line(value, 200)}")
    return EXIT_OK


def _when(entry: Baseline) -> str:
    moment = datetime.fromtimestamp(entry.made_utc_ns / 1e9, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
