"""Arguments. Only argparse is imported here; commands are loaded when they are called.

Paths stay strings: pathlib (urllib, fnmatch) and shutil (bz2, lzma) would be a third of the time
of ``llmprof --help``.
"""

from __future__ import annotations

import argparse

from llmprof import __version__
from llmprof.cli.examples import epilog
from llmprof.cli.frame import Formatter, Parser, add_config, add_step_range, late

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


def run_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="llmprof",
        description="Where does the time of every generated token go?",
        epilog=f"{epilog('')}\n{EPILOG}",
        formatter_class=Formatter,
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
    add_step_range(out)
    add_config(out)
    parser.set_defaults(command=late("llmprof.cli.run.run_command:run"))
    return parser


def _record(argv: list[str]) -> argparse.Namespace:
    """Everything behind the first ``--`` is the command, whatever it looks like."""
    from llmprof.cli.subcommands import subcommand

    cut = argv.index("--") if "--" in argv else len(argv)
    parser = subcommand("record")
    arguments = parser.parse_args(argv[:cut])
    if arguments.program and cut < len(argv):
        parser.error(f"unrecognized argument {arguments.program[0]!r} before --")
    arguments.program = arguments.program or argv[cut + 1 :]
    return arguments


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments with ``command`` set to what to call. Exits with 2 on a mistake."""
    if argv and not argv[0].startswith("-"):
        return _parse_command(argv)
    arguments = run_parser().parse_args(argv)
    arguments.argv = argv
    return arguments


def _parse_command(argv: list[str]) -> argparse.Namespace:
    # Not for ``llmprof --help``: the parsers of the commands are none of its time.
    from llmprof.cli.subcommands import SUBCOMMANDS, subcommand

    if argv[0] == "record":
        return _record(argv[1:])
    if argv[:1] == ["sweep"] and argv[1:2] in (["report"], ["view"]):
        return subcommand(f"sweep {argv[1]}").parse_args(argv[2:])
    if argv[0] not in SUBCOMMANDS:
        run_parser().error(_no_command(argv[0]))
    return subcommand(argv[0]).parse_args(argv[1:])


_MEANT = {"diff": "compare", "show": "open", "view": "open", "replay": "open", "report": "open",
          "check": "doctor", "list": "engines"}  # fmt: skip


def _no_command(word: str) -> str:
    """What is wrong with a first word that is no command, and what was meant."""
    from difflib import get_close_matches

    from llmprof.cli.subcommands import SUBCOMMANDS

    if word.endswith((".sqlite", ".nsys-rep")):
        return f"{word!r} is a file: llmprof open {word}, or llmprof --headless --from {word}"
    near = [_MEANT[word]] if word in _MEANT else get_close_matches(word, SUBCOMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(SUBCOMMANDS)}"
    return f"unknown command {word!r}; {hint}"
