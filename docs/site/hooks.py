"""MkDocs hooks: reference pages made from the code, and real output in place of commands.

A fenced block whose language is ``llmprof`` holds one command line. In the site it is followed by
what that command prints, run at the root of the checkout. A command that fails ends the build.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```llmprof\n(?P<command>.+)\n```$", re.MULTILINE)
_TABLE = re.compile(r"((?:^--.*\n)*)^CREATE TABLE (\w+) \((.*?)^\)[^;]*;", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The reference pages."""
    for name, text in (
        ("commands", commands()),
        ("json", json_reference()),
        ("run-file", run_file_reference()),
    ):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _BLOCK.sub(lambda found: _with_output(found["command"], page.file.src_uri), markdown)


def _with_output(line: str, where: str) -> str:
    words = shlex.split(line)
    if words[0] != "llmprof":
        raise PluginError(f"{where}: a block of llmprof begins with llmprof: {line}")
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise PluginError(f"{where}: {line} ended with {done.returncode}: {done.stderr[-400:]}")
    return f"```\n$ {line}\n{done.stdout.rstrip()}\n```"


# -- commands ------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its options, as argparse knows them."""
    from llmprof.cli.parser import run_parser
    from llmprof.cli.subcommands import SUBCOMMANDS, subcommand

    parts = [
        "# Commands\n\nMade from the parsers of this version; `--help` says the same.\n",
        _command("llmprof", run_parser()),
    ]
    parts += [_command(f"llmprof {name}", subcommand(name)) for name in SUBCOMMANDS]
    return "\n".join(parts)


def _command(name: str, parser: argparse.ArgumentParser, level: str = "##") -> str:
    described = _escaped((parser.description or "").strip())
    lines = [f"{level} {name}\n", described[:1].upper() + described[1:], ""]
    below: list[str] = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
                continue
            if isinstance(action, argparse._SubParsersAction):
                below += [_command(f"{name} {n}", p, "###") for n, p in action.choices.items()]
                continue
            rows.append(f"| {_option(action)} | {_escaped(_help(action, parser))} |")
        if rows:
            title = (group.title or "options").capitalize()
            lines += [f"**{_escaped(title)}**\n", "| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join([*lines, *below])


def _option(action: argparse.Action) -> str:
    shown = action.metavar
    if shown is None and action.choices is not None:
        shown = "|".join(str(choice) for choice in action.choices)
    if isinstance(shown, tuple):
        shown = " ".join(shown)
    if not action.option_strings:
        return f"`{shown or action.dest}`".replace("|", "\\|")
    value = "" if action.nargs == 0 else f" {shown or action.dest.upper()}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings).replace("|", "\\|")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    formatter = parser._get_formatter()
    return formatter._expand_help(action) if action.help else ""


def _escaped(text: str) -> str:
    for sign in "\\|<>*_[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text.replace("\n", " ")


# -- JSON ----------------------------------------------------------------------------------------


def json_reference() -> str:
    """The document of ``--json``, from its schema."""
    from llmprof.exports.json.schema import text

    schema = json.loads(text())
    names = schema["$defs"]
    lines = [
        "# JSON\n",
        f"{_escaped(schema['description'])}\n",
        "`llmprof schema` prints the JSON Schema that this page is made from. A value that could"
        " not be measured is `null`, and its key with `_reason` says why. The major number of"
        " `schema_version` changes where a key goes away or means something else.\n",
        "## The document\n",
        *_properties(schema),
    ]
    for name in sorted(names):
        lines += [f"## {name}\n", *_properties(names[name])]
    return "\n".join(lines)


def _properties(schema: dict[str, Any]) -> Iterator[str]:
    if schema.get("description"):
        yield f"{_escaped(schema['description'])}\n"
    found = schema.get("properties", {})
    if not found:
        yield f"{_kind(schema)}\n"
        return
    yield "| key | type | meaning |"
    yield "|---|---|---|"
    for key, value in found.items():
        yield f"| `{key}` | {_kind(value)} | {_escaped(value.get('description', ''))} |"
    yield ""


def _kind(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{_escaped(name)}](#{name})"
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(_kind(one) for one in value[key])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and isinstance(value.get("items"), dict):
        return f"list of {_kind(value['items'])}"
    return str(kind)


# -- run file ------------------------------------------------------------------------------------


def run_file_reference() -> str:
    """The tables of a run file, from the statements that make them."""
    text = (ROOT / "llmprof" / "runfile" / "schema.sql").read_text(encoding="utf-8")
    own, theirs = [], []
    for comment, name, body in _TABLE.findall(text):
        note = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
        block = f"### {name}\n\n{_escaped(note)}\n\n```sql\n{_dedented(body)}\n```\n"
        (own if name.startswith("LLMPROF_") else theirs).append(block)
    return "\n".join(
        [
            "# Run file\n",
            "A run is one SQLite file. Its tables without `LLMPROF_` are those of an export of"
            " Nsight Systems, so that `nsys stats` and whatever else reads such exports reads it;"
            " llmprof's own stand beside them. Times are integer nanoseconds. Only one process"
            " writes a file, a transaction a round: whatever kills it, the rounds that were"
            " finished are there.\n",
            "## llmprof's tables\n",
            *own,
            "## Tables of Nsight Systems\n",
            *theirs,
        ]
    )


def _dedented(body: str) -> str:
    return "\n".join(line.strip() for line in body.strip("\n").splitlines())
