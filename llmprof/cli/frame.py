"""What the parsers share. Only argparse is imported: this is part of the time of ``--help``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib import import_module

from llmprof.errors import EXIT_USAGE

Command = Callable[[argparse.Namespace], int]


def late(target: str) -> Command:
    """A command that is imported when it runs."""

    def call(arguments: argparse.Namespace) -> int:
        module, _, name = target.partition(":")
        return int(getattr(import_module(module), name)(arguments))

    return call


class Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = 100
        super().__init__(prog, width=min(columns, 100) - 2)


class Parser(argparse.ArgumentParser):
    """One clear line for a mistake, not the whole usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        mark = "unrecognized arguments: "
        if message.startswith(f"{mark}--"):
            from difflib import get_close_matches

            typo = message.removeprefix(mark).split(" ")[0].partition("=")[0]
            if near := get_close_matches(typo, self._option_string_actions, 1):
                message += f"; did you mean {near[0]}?"
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_step_range(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--step-range",
        metavar="GLOB",
        help="which ranges are decode steps, where llmprof did not drive: 'decode*' (a guess)",
    )
    parser.add_argument(
        "--steps",
        choices=("auto", "ranges", "detect", "none"),
        default="auto",
        help="where the steps of a file that llmprof did not drive come from: its ranges, the"
        " device's own work, or no steps (auto: ranges where some explain the work)",
    )


def add_config(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--config",
        dest="config_file",
        metavar="FILE",
        help="read this config file instead of those that are looked for",
    )
