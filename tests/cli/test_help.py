"""What is told about the command line: help, examples, completions, man page; and --config."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmprof.cli.examples import EXAMPLES
from llmprof.cli.parser import parse
from llmprof.cli.shell_files import FILES, whole_parser, write
from llmprof.cli.subcommands import SUBCOMMANDS


@pytest.mark.parametrize("command", ["", *SUBCOMMANDS])
def test_every_command_has_help_that_ends_in_examples(llmprof, command: str) -> None:
    done = llmprof(*command.split(), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: llmprof")
    assert "examples:\n" in done.stdout and EXAMPLES[command].splitlines()[0] in done.stdout


@pytest.mark.parametrize("command", list(EXAMPLES))
def test_the_examples_are_accepted(command: str) -> None:
    for line in EXAMPLES[command].splitlines():
        example = line.strip().partition("   ")[0].partition(" | ")[0].partition(" > ")[0]
        words = shlex.split(example)
        assert words[0] == "llmprof" and (not command or words[1] == command)
        parse(words[1:])  # exits where it does not know a word


@pytest.fixture(scope="module")
def shell_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    pytest.importorskip("argparse_manpage")
    folder = tmp_path_factory.mktemp("shell")
    write(folder)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    return folder


def completed(shell_files: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = (
        f"source {shlex.quote(str(shell_files / 'llmprof.bash'))};"
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1};"
        "_shtab_llmprof; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_and_choices(shell_files: Path) -> None:
    assert completed(shell_files, "llmprof", "com") == ["compare"]
    assert "--fail-on" in completed(shell_files, "llmprof", "compare", "--f")
    assert completed(shell_files, "llmprof", "--trace", "ke") == ["kernels"]
    assert "prepare" in completed(shell_files, "llmprof", "model", "p")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_its_file(shell_files: Path) -> None:
    subprocess.run(["zsh", "-n", str(shell_files / "_llmprof")], check=True)


def test_the_man_page_names_every_command_and_option(shell_files: Path) -> None:
    page = (shell_files / "llmprof.1").read_text()
    plain = page.replace("\\-", "-")
    for name in SUBCOMMANDS:
        assert f"llmprof {name}" in plain
    for action in whole_parser()._actions:
        for option in action.option_strings:
            if option.startswith("--") and option != "--help":
                assert option in plain
    assert ".SH EXAMPLES" in page and ".SH EXIT STATUS" in page
    if man := shutil.which("man"):
        done = subprocess.run(
            [man, "--warnings", "-l", str(shell_files / "llmprof.1")],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
        )
        assert done.returncode == 0 and not done.stderr
        assert "--fail-on 'tok_s<98%,itl_p99_ms>1.1x'" in done.stdout


def test_engines_says_state_and_versions(llmprof) -> None:
    done = llmprof("engines")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert any(line.split()[:2] in (["ok", "torch"], ["missing", "torch"]) for line in lines)
    assert f"Python {sys.version.split()[0]}" in done.stdout
    assert ":TorchEngine" not in done.stdout


def test_config_is_read_instead_of_those_that_are_looked_for(llmprof, tmp_path: Path) -> None:
    (tmp_path / "llmprof.toml").write_text('[engines.looked-for]\npython = "/none"\n')
    mine = tmp_path / "mine.toml"
    mine.write_text('[engines.chosen]\npython = "/none"\n')
    done = llmprof("engines", "--config", str(mine))
    assert "chosen" in done.stdout and "looked-for" not in done.stdout
    assert "looked-for" in llmprof("engines").stdout


def test_a_config_that_is_not_there(llmprof) -> None:
    done = llmprof("--headless", "--config", "gone.toml", "--engine", "fake")
    assert (done.returncode, done.stderr) == (2, "llmprof: --config gone.toml: no such file\n")


def test_a_locked_account_cannot_choose_a_config(llmprof, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    done = llmprof("engines", "--config", "mine.toml", env={"LLMPROF_LOCKED": "1"})
    assert done.returncode == 2 and "cannot choose a config file" in done.stderr
