"""Arguments. Only argparse is imported here; commands are loaded when they are called.

Paths stay strings: pathlib (urllib, fnmatch) and shutil (bz2, lzma) would be a third of the time
of ``llmprof --help``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib import import_module

from llmprof import __version__
from llmprof.cli.examples import epilog
from llmprof.errors import EXIT_USAGE

EPILOG = """\
commands:
  llmprof [options]        decode, record, show (the TUI in a terminal, else --headless)
  llmprof record -- CMD…   record any program: its kernels, step by step
  llmprof open [FILE…]     replay run files, or nsys exports, in the TUI, side by side
  llmprof export FILE --to FORMAT -o OUT   nsys, perfetto, chrome, html, speedscope, …
  llmprof findings RUN     what would make a token cheaper, ranked, with evidence
  llmprof compare A [B]    two engines of one run, or of two: ratio, waterfall, gate
  llmprof baseline save|list|show  runs to compare with: llmprof compare --baseline NAME RUN
  llmprof sweep [report|view]  curves over context, batch, any field: here or on a Ray cluster
  llmprof model synth|prepare  random or real weights in an engine's own format
  llmprof engines          engines that can be named here: state, versions
  llmprof doctor [--json]  what works on this machine, and how to get the rest
  llmprof schema           JSON Schema of the --json document

exit codes: 0 all ran; 1 an engine failed, the others finished; 2 bad usage or input;
3 nothing could run; 4 a gate failed; 5 a gate could not tell; 130 interrupted (all is kept)
"""

Command = Callable[[argparse.Namespace], int]


def _late(target: str) -> Command:
    """A command that is imported when it runs."""

    def call(arguments: argparse.Namespace) -> int:
        module, _, name = target.partition(":")
        return int(getattr(import_module(module), name)(arguments))

    return call


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _natural(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer ≥ {minimum}")
    return value


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = 100
        super().__init__(prog, width=min(columns, 100) - 2)


class _Parser(argparse.ArgumentParser):
    """One clear line for a mistake, not the whole usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        mark = "unrecognized arguments: "
        if message.startswith(f"{mark}--"):
            from difflib import get_close_matches

            typo = message.removeprefix(mark).split(" ")[0].partition("=")[0]
            if near := get_close_matches(typo, self._option_string_actions, 1):
                message += f"; did you mean {near[0]}?"
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="llmprof",
        description="Where does the time of every generated token go?",
        epilog=f"{epilog('')}\n{EPILOG}",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llmprof {__version__}")
    what = parser.add_argument_group("what to decode")
    what.add_argument(
        "--engine",
        action="append",
        metavar="NAME[@PYTHON][:key=value,…]",
        help="an engine, its interpreter and options; repeat to compare (default: torch)",
    )
    what.add_argument(
        "--model", help="a .gguf file, a Hugging Face folder, smollm2, or a random preset (tiny, …)"
    )
    what.add_argument(
        "--tp",
        type=_positive,
        metavar="N",
        help="tensor parallel over N GPUs, for every engine that does not say tp= itself (1)",
    )
    prompt = what.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="prompt text (needs a tokenizer)")
    prompt.add_argument("--prompt-len", type=_positive, metavar="N", help="N seeded token ids")
    prompt.add_argument("--prompt-ids", metavar="FILE", help="token ids from a file")
    what.add_argument("--decode-len", type=_positive, metavar="N", help="decode steps a round (64)")
    what.add_argument("--batch", type=_positive, metavar="B", help="sequences at once (1)")
    how = parser.add_argument_group("how to measure")
    how.add_argument(
        "--precision",
        metavar="P%",
        help="end when each ratio is known to ± this (1%%), or the time is over",
    )
    how.add_argument(
        "--max-time",
        metavar="T",
        help="warm-up, timing and traced pass together, without loading: 60s, 5m (60s)",
    )
    how.add_argument(
        "--rounds", type=_positive, metavar="R", help="exactly so many timing rounds an engine"
    )
    how.add_argument(
        "--processes",
        metavar="N|auto",
        help="timing pass in N fresh processes of each engine: from 5 on differences below 1 %% can"
        " be told (auto: 8 where starting costs little)",
    )
    how.add_argument(
        "--traced-steps", type=_natural, metavar="N", help="steps of the traced pass (32); 0: none"
    )
    how.add_argument(
        "--trace",
        choices=("steps", "kernels", "full", "all"),
        help="what the traced pass records (kernels); full: launches, copies and waits too; all:"
        " every API call",
    )
    how.add_argument(
        "--bandwidth",
        choices=("kernels", "steps", "off"),
        help="DRAM counters beside kernels, for the bandwidth of each (kernels), or of steps only",
    )
    how.add_argument(
        "--capture",
        choices=("nsys",),
        help="run the traced pass under the nsys on PATH and keep its .nsys-rep beside the run",
    )
    how.add_argument(
        "--host-rate",
        type=_natural,
        metavar="HZ",
        help="host stacks a second, traced pass (1000; below 4 CPUs 200; blocking 100, native 20)",
    )
    stacks = how.add_mutually_exclusive_group()
    stacks.add_argument(
        "--host-native", action="store_true", help="C and C++ frames too; stops the worker"
    )
    stacks.add_argument(
        "--host-blocking",
        action="store_true",
        help="stop the worker while each stack is read: no torn stacks",
    )
    stacks.add_argument("--no-host", action="store_true", help="no host stacks")
    how.add_argument("--seed", type=_natural, metavar="S", help="prompt ids, order, weights (0)")
    how.add_argument(
        "--timeout",
        type=_positive,
        default=300,
        metavar="S",
        help="seconds without a sign of life after which an engine has failed (300)",
    )
    out = parser.add_argument_group("what to show")
    out.add_argument("-o", "--output", metavar="RUN.sqlite", help="the run file")
    out.add_argument("--headless", action="store_true", help="a summary table instead of the TUI")
    out.add_argument("--json", action="store_true", help="one JSON document on stdout (headless)")
    out.add_argument("--from", dest="source", metavar="RUN.sqlite", help="report on a recorded run")
    _step_range(out)
    _config(out)
    parser.set_defaults(command=_late("llmprof.cli.run.run_command:run"))
    return parser


def _step_range(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--step-range",
        metavar="GLOB",
        help="which ranges are decode steps, for a file of nsys or torch: 'decode*' (a guess)",
    )
    parser.add_argument(
        "--steps",
        choices=("auto", "ranges", "detect", "none"),
        default="auto",
        help="where the steps of a file that llmprof did not record come from: its ranges, the"
        " device's own work, or no steps (auto: ranges where some explain the work)",
    )


def _config(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--config",
        dest="config_file",
        metavar="FILE",
        help="read this config file instead of those that are looked for",
    )


def subcommand(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser = _Parser(
        prog=f"llmprof {name}",
        epilog=epilog(name),
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    if name == "open":
        parser.description = (
            "Replay run files, exports of Nsight Systems or traces of torch.profiler in the TUI,"
            " several side by side; traces of the ranks of one run are one run."
        )
        parser.add_argument(
            "file",
            nargs="*",
            help="RUN.sqlite, TRACE.json[.gz], or X.nsys-rep where nsys is on PATH; a folder;"
            " without one: choose among the runs that there are",
        )
        _step_range(parser)
        _config(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.report_commands:open_file"))
    elif name == "compare":
        parser.description = (
            "Why is B faster than A? One file compares its engines with its first one; two files"
            " compare the engines named, or those that both have."
        )
        parser.add_argument(
            "a", metavar="A", help="FILE or FILE:LABEL; a run, an nsys export, a trace"
        )
        parser.add_argument("b", metavar="B", nargs="?", help="the same, compared with A")
        parser.add_argument("--json", action="store_true", help="one JSON document")
        _step_range(parser)
        from llmprof.cli.files.compare_arguments import add_arguments as add_gate_arguments

        add_gate_arguments(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.compare_command:compare"))
    elif name == "findings":
        parser.description = (
            "What would make a token cheaper: at most ten statements, the most ms a token first,"
            " each with its evidence and the next command."
        )
        parser.add_argument("file", metavar="RUN", help="a run, an nsys export, a trace")
        parser.add_argument("--json", action="store_true", help="one JSON document of at most 4 kB")
        _step_range(parser)
        _config(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.findings_command:findings"))
    elif name == "baseline":
        from llmprof.cli.files.baseline_command import add_arguments as add_baseline_arguments

        parser.description = "Runs kept under a name, to compare with: compare --baseline NAME RUN."
        add_baseline_arguments(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.baseline_command:baseline"))
    elif name == "export":
        parser.description = "Write runs in another format."
        parser.add_argument(
            "files", metavar="FILE", nargs="+", help="run files, nsys exports, traces"
        )
        parser.add_argument("--to", metavar="FORMAT", required=True, help=", ".join(EXPORTS))
        parser.add_argument("-o", "--output", metavar="OUT", help="the new file or folder")
        _step_range(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.export_command:export"))
    elif name == "model":
        from llmprof.cli.model_command import add_arguments

        parser.description = "Make a model that an engine can load."
        add_arguments(parser)
        parser.set_defaults(command=_late("llmprof.cli.model_command:model"))
    elif name == "record":
        from llmprof.cli.record_command import add_arguments as add_record_arguments

        parser.description = (
            "Record any program and its children on the GPU, kernel by kernel, without changing it."
            " The exit code is the program's (128 + N for signal N)."
        )
        add_record_arguments(parser)
        parser.set_defaults(command=_late("llmprof.cli.record_command:record"))
    elif name == "sweep":
        from llmprof.cli.sweep_arguments import sweep_parser

        parser.description = (
            "Run a grid of points, a run file each; the same command goes on with a sweep that was"
            " stopped or killed. llmprof sweep report DIR --to FORMAT."
        )
        sweep_parser(parser)
        _config(parser)
        parser.set_defaults(command=_late("llmprof.cli.sweep_command:sweep"))
    elif name == "sweep report":
        from llmprof.cli.sweep_arguments import report_parser

        parser.description = "Curves, tables and fits of a sweep, as a file."
        report_parser(parser)
        parser.set_defaults(command=_late("llmprof.cli.sweep_command:report"))
    elif name == "sweep view":
        parser.description = "Curves of a sweep in the TUI; enter opens the run of a point."
        parser.add_argument("folder", metavar="DIR", help="the sweep's folder")
        _config(parser)
        parser.set_defaults(command=_late("llmprof.cli.sweep_command:view"))
    elif name == "engines":
        parser.description = "The engines that can be named here: state, versions, interpreter."
        _config(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.report_commands:engines"))
    elif name == "doctor":
        parser.description = "What works on this machine, and how to get the rest."
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="machine-readable")
        form.add_argument("--banner", action="store_true", help="a few lines, for a login")
        _config(parser)
        parser.set_defaults(command=_late("llmprof.cli.files.report_commands:doctor"))
    else:
        parser.description = "Print the JSON Schema of the --json document."
        parser.set_defaults(command=_late("llmprof.cli.files.report_commands:schema"))
    return parser


EXPORTS = ("nsys", "perfetto", "chrome", "parquetdir", "csv", "markdown", "html", "json",
           "benchmark-report", "llama-bench", "speedscope", "collapsed")  # fmt: skip
SUBCOMMANDS = (
    "record",
    "open",
    "findings",
    "export",
    "compare",
    "baseline",
    "sweep",
    "model",
    "engines",
    "doctor",
    "schema",
)


def _record(argv: list[str]) -> argparse.Namespace:
    """Everything behind the first ``--`` is the command, whatever it looks like."""
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = subcommand("record")
    arguments = parser.parse_args(argv[:cut])
    if arguments.program and cut < len(argv):
        parser.error(f"unrecognized argument {arguments.program[0]!r} before --")
    arguments.program = arguments.program or argv[cut + 1 :]
    return arguments


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments with ``command`` set to what to call. Exits with 2 on a mistake."""
    if argv and argv[0] == "record":
        return _record(argv[1:])
    if argv[:1] == ["sweep"] and argv[1:2] in (["report"], ["view"]):
        return subcommand(f"sweep {argv[1]}").parse_args(argv[2:])
    if argv and argv[0] in SUBCOMMANDS:
        return subcommand(argv[0]).parse_args(argv[1:])
    if argv and not argv[0].startswith("-"):
        run_parser().error(_no_command(argv[0]))
    arguments = run_parser().parse_args(argv)
    arguments.argv = argv
    return arguments


_MEANT = {"diff": "compare", "show": "open", "view": "open", "replay": "open", "report": "open",
          "check": "doctor", "list": "engines"}  # fmt: skip


def _no_command(word: str) -> str:
    """What is wrong with a first word that is no command, and what was meant."""
    from difflib import get_close_matches

    if word.endswith((".sqlite", ".nsys-rep")):
        return f"{word!r} is a file: llmprof open {word}, or llmprof --headless --from {word}"
    near = [_MEANT[word]] if word in _MEANT else get_close_matches(word, SUBCOMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(SUBCOMMANDS)}"
    return f"unknown command {word!r}; {hint}"
