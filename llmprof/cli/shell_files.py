"""Shell completions and the man page, made from the parsers when a wheel is built (hatch_build.py).

    python -m llmprof.cli.shell_files FOLDER

Needs shtab and argparse-manpage, which are needed nowhere else.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from llmprof.cli.examples import EXAMPLES
from llmprof.cli.parser import EPILOG, run_parser
from llmprof.cli.subcommands import SUBCOMMANDS, subcommand

FILES = {
    "llmprof.bash": "share/bash-completion/completions/llmprof",
    "_llmprof": "share/zsh/site-functions/_llmprof",
    "llmprof.1": "share/man/man1/llmprof.1",
}
"""Made file → where a wheel puts it, below the environment."""
_PATHS = {"file", "files", "a", "b", "output", "source", "config_file", "config", "prompt_ids",
          "lib", "model", "python", "artifact_path"}  # fmt: skip
"""Names of arguments that are paths."""


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command; ``parse`` makes only the one that it is asked for."""
    parser = run_parser()
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name in SUBCOMMANDS:
        made = subcommand(name)
        commands.add_parser(
            name,
            parents=[made],
            conflict_handler="resolve",  # -h of both
            help=made.description,
            description=made.description,
            epilog=made.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    return parser


def write(folder: Path) -> None:
    """Make ``FILES`` in a folder."""
    import shtab
    from argparse_manpage.manpage import Manpage

    parser = whole_parser()
    _mark_paths(parser, shtab.FILE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, shell in (("llmprof.bash", "bash"), ("_llmprof", "zsh")):
        (folder / name).write_text(shtab.complete(parser, shell) + "\n", encoding="utf-8")
    page = whole_parser()
    page.epilog = None
    for action in page._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                inner.epilog = None
    text = str(Manpage(page, format="single-commands-section"))
    name = "llmprof \\- terminal profiler for LLM decoding"
    text = text.replace(".SH NAME\nllmprof\n", f".SH NAME\n{name}\n", 1)
    examples = "\n".join(EXAMPLES.values()).replace("\\", "\\e")
    codes = EPILOG.partition("exit codes: ")[2].strip()
    text += f"\n.SH EXAMPLES\n.nf\n{examples}\n.fi\n.SH EXIT STATUS\n{codes}\n"
    # Help that begins with a dot ("./dist") or a quote is no macro.
    text = re.sub(r"^(?=\./|')", r"\\&", text, flags=re.MULTILINE)
    (folder / "llmprof.1").write_text(text, encoding="utf-8")


def _mark_paths(parser: argparse.ArgumentParser, mark: Any) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_paths(inner, mark)
        elif action.dest in _PATHS:
            action.complete = mark  # type: ignore[attr-defined]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
