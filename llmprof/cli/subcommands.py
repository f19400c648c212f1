"""The parser of each command: what it takes, in words, and what to call. Only argparse is imported.

What a command takes is added by a function of its own here, or by one that lives beside the
command and is imported when its parser is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

from llmprof.cli.examples import epilog
from llmprof.cli.frame import Formatter, Parser, add_config, add_step_range, late

EXPORTS = ("html", "perfetto", "nsys", "chrome", "parquetdir", "csv", "markdown", "json",
           "benchmark-report", "llama-bench", "speedscope", "collapsed")  # fmt: skip

Adder = Callable[[argparse.ArgumentParser], None]


class Command:
    """Of one command: ``module:function`` that is called, its description, what adds arguments.

    No dataclass: importing ``dataclasses`` takes as long as all of ``--help`` may.
    """

    __slots__ = ("adders", "call", "description")

    def __init__(self, call: str, description: str, adders: tuple[Adder, ...] = ()) -> None:
        self.call = call
        self.description = description
        self.adders = adders


def _open(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="*",
        help="RUN.sqlite, TRACE.json[.gz], or X.nsys-rep where nsys is on PATH; a folder;"
        " without one: choose among the runs that there are",
    )


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="FILE or FILE:LABEL; a run, an nsys export, a trace")
    parser.add_argument("b", metavar="B", nargs="?", help="the same, compared with A")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _findings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="RUN", help="a run, an nsys export, a trace")
    parser.add_argument("--json", action="store_true", help="one JSON document of at most 4 kB")


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="run files, nsys exports, traces")
    parser.add_argument("--to", metavar="FORMAT", required=True, help=", ".join(EXPORTS))
    parser.add_argument("-o", "--output", metavar="OUT", help="the new file or folder")


def _sweep_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the sweep's folder")


def _doctor(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="machine-readable")
    form.add_argument("--banner", action="store_true", help="a few lines, for a login")


def _beside(target: str) -> Adder:
    """The function of another module, imported when the parser is made."""

    def add(parser: argparse.ArgumentParser) -> None:
        module, _, name = target.partition(":")
        getattr(import_module(module), name)(parser)

    return add


COMMANDS = {
    "record": Command(
        "llmprof.cli.record_command:record",
        "Record any program and its children on the GPU, kernel by kernel, without changing it."
        " The exit code is the program's (128 + N for signal N).",
        (_beside("llmprof.cli.record_command:add_arguments"),),
    ),
    "open": Command(
        "llmprof.cli.files.open_command:open_file",
        "Replay run files, exports of Nsight Systems or traces of torch.profiler in the TUI,"
        " several side by side; traces of the ranks of one run are one run.",
        (_open, add_step_range, add_config),
    ),
    "findings": Command(
        "llmprof.cli.files.findings_command:findings",
        "What would make a token cheaper: at most ten statements, the most ms a token first,"
        " each with its evidence and the next command.",
        (_findings, add_step_range, add_config),
    ),
    "export": Command(
        "llmprof.cli.files.export_command:export",
        "Write runs in another format.",
        (_export, add_step_range),
    ),
    "compare": Command(
        "llmprof.cli.files.compare_command:compare",
        "Why is B faster than A? One file compares its engines with its first one; two files"
        " compare the engines named, or those that both have.",
        (_compare, add_step_range, _beside("llmprof.cli.files.compare_arguments:add_arguments")),
    ),
    "baseline": Command(
        "llmprof.cli.files.baseline_command:baseline",
        "Runs kept under a name, to compare with: compare --baseline NAME RUN.",
        (_beside("llmprof.cli.files.baseline_command:add_arguments"),),
    ),
    "sweep": Command(
        "llmprof.cli.sweep_command:sweep",
        "Run a grid of points, a run file each; the same command goes on with a sweep that was"
        " stopped or killed. llmprof sweep report DIR --to FORMAT.",
        (_beside("llmprof.cli.sweep_arguments:sweep_parser"), add_config),
    ),
    "sweep report": Command(
        "llmprof.cli.sweep_command:report",
        "Curves, tables and fits of a sweep, as a file.",
        (_beside("llmprof.cli.sweep_arguments:report_parser"),),
    ),
    "sweep view": Command(
        "llmprof.cli.sweep_command:view",
        "Curves of a sweep in the TUI; enter opens the run of a point.",
        (_sweep_view, add_config),
    ),
    "model": Command(
        "llmprof.cli.model_command:model",
        "Make a model that an engine can load.",
        (_beside("llmprof.cli.model_command:add_arguments"),),
    ),
    "engines": Command(
        "llmprof.cli.machine.engines_command:engines",
        "The engines that can be named here: state, versions, interpreter.",
        (add_config,),
    ),
    "doctor": Command(
        "llmprof.cli.machine.doctor_command:doctor",
        "What works on this machine, and how to get the rest.",
        (_doctor, add_config),
    ),
    "schema": Command(
        "llmprof.cli.files.schema_command:schema",
        "Print the JSON Schema of the --json document.",
    ),
}
SUBCOMMANDS = tuple(name for name in COMMANDS if " " not in name)


def subcommand(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    command = COMMANDS[name]
    parser = Parser(
        prog=f"llmprof {name}",
        description=command.description,
        epilog=epilog(name),
        allow_abbrev=False,
        formatter_class=Formatter,
    )
    for add in command.adders:
        add(parser)
    parser.set_defaults(command=late(command.call))
    return parser
