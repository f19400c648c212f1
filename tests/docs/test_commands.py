"""Commands that the documentation shows: each one parses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llmprof.cli.parser import parse
from llmprof.errors import LlmprofError

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_SHELL = ("", "sh", "bash", "console", "llmprof", "keys", "yaml")


def commands(page: Path) -> list[str]:
    """Lines that begin with llmprof in blocks of the shell, without remarks behind them."""
    found = []
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in _SHELL:
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ").removeprefix("- run: ")
            if line.startswith("llmprof "):
                line = re.split(r" {2,}| \| | > | 2>|; |&& | &$", line)[0]
                found.append(line.strip())
    return found


SHOWN = [(page.name, line) for page in PAGES for line in commands(page)]


def test_there_are_commands_to_look_at() -> None:
    assert len(SHOWN) > 100
    assert len({name for name, _ in SHOWN}) > 15


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_it_parses(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if re.search(r"…|\[|CMD|\.\.\.", line):
        pytest.skip("stands for several commands")
    try:
        parse(shlex.split(line)[1:])
    except SystemExit as why:  # --help, --version
        assert not why.code, f"{page}: {line}: {capsys.readouterr().err}"
    except LlmprofError as why:
        raise AssertionError(f"{page}: {line}: {why}") from None
