"""Commands that the documentation shows: each one parses; the gate's page runs as it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
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


def test_the_gate_page_runs_as_it_says(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """With engines of known speed in place of torch; ``new`` takes thrice as long."""
    lines = [line for line in commands(ROOT / "docs" / "ci-gate.md") if "fixtures" not in line]
    env = {**clean_env, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}

    def run(line: str, slower: bool = False) -> subprocess.CompletedProcess[str]:
        line = re.sub(r"torch@old/bin/python", f"fake@{sys.executable}", line)
        line = re.sub(r"torch@new/bin/python:", f"fake@{sys.executable}:step_us=6000,", line)
        line = line.replace("--engine torch", f"--engine fake:step_us={6000 if slower else 2000}")
        line = re.sub(r"--model \S+", "--model tiny --prompt-len 4 --decode-len 16", line)
        line = line.replace("--rounds 24", "--rounds 8 --traced-steps 4")
        return subprocess.run(
            [sys.executable, "-m", *shlex.split(line)], cwd=tmp_path, env=env, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip

    made, gated = lines[0], lines[1]
    for name, slower in (("old", False), ("new", True), ("run", False)):
        done = run(made.replace("new.sqlite", f"{name}.sqlite"), slower)
        assert done.returncode == 0, done.stderr
    done = run(gated)
    assert done.returncode == 4 and "gate failed: tok_s<98%" in done.stderr, done.stderr
    assert "<failure" in (tmp_path / "gate.xml").read_text()
    assert "❌ failed" in (tmp_path / "summary.md").read_text()
    codes = {}
    for line in lines[2:]:
        if (tmp_path / "pair.sqlite").exists() and "-o pair.sqlite" in line:
            continue
        done = run(line)
        assert "Traceback" not in done.stderr, done.stderr
        codes[line] = (done.returncode, done.stderr[-300:])
    for line, (code, said) in codes.items():
        assert code == (4 if "--fail-on" in line else 0), (line, said)
    assert any("--baseline main" in line for line in codes)
