"""What standard output and error may be: full, closed, hung up, of another encoding."""

from __future__ import annotations

import codecs
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmprof.plaintext import ascii_for

COMMANDS = ["--headless --from run.sqlite", "--headless --json --from run.sqlite", "--help",
            "compare run.sqlite", "engines", "schema"]  # fmt: skip


@pytest.fixture
def run_file(llmprof, tmp_path: Path) -> Path:
    engines = ("--engine", "fake", "--engine", "fake:step_us=900")
    done = llmprof("--headless", *engines, "--decode-len", "8", "--rounds", "1", "-o", "run.sqlite")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run.sqlite"


def shell(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = f"{shlex.quote(sys.executable)} -m llmprof {text}"
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, timeout=120
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("target", [">/dev/full", ">&-"])
def test_an_output_that_fails_is_one_line_and_exit_code_1(
    run_file: Path, clean_env: dict[str, str], command: str, target: str
) -> None:
    done = shell(f"{command} {target}", run_file.parent, clean_env)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("llmprof: standard output cannot be written")


def test_a_reader_that_leaves_is_no_failure(run_file: Path, clean_env: dict[str, str]) -> None:
    done = shell("schema | head -c 1; echo ${PIPESTATUS[0]}", run_file.parent, clean_env)
    assert done.stdout.decode().split("{")[-1].strip() == "0"
    assert not done.stderr


@pytest.mark.parametrize("target", ["2>&-", "2>/dev/full", "2> >(exit)"])
def test_a_run_does_not_end_for_its_standard_error(
    tmp_path: Path, clean_env: dict[str, str], target: str
) -> None:
    """Nor does a line that was meant for it appear elsewhere."""
    text = f"--headless --json --engine fake --decode-len 8 --rounds 1 -o r.sqlite {target}"
    done = shell(text, tmp_path, clean_env)
    assert done.returncode == 0
    assert done.stdout.startswith(b"{") and done.stdout.endswith(b"}\n")
    assert (tmp_path / "r.sqlite").stat().st_size
    assert shell(f"--headless --from no.sqlite {target}", tmp_path, clean_env).returncode == 2


def test_a_locale_without_the_character_gets_one_that_it_has(
    run_file: Path, clean_env: dict[str, str]
) -> None:
    for command in ("--headless --from run.sqlite", "compare run.sqlite", "doctor"):
        env = {**clean_env, "PYTHONIOENCODING": "latin-1"}
        done = shell(command, run_file.parent, env)
        assert b"Traceback" not in done.stderr and done.returncode == 0
        text = done.stdout.decode("latin-1")
        assert text and "─" not in text
    assert ascii_for("→") == ">" and ascii_for("語") == "?"


def test_columns_stay_where_they_are(run_file: Path, clean_env: dict[str, str]) -> None:
    command = "--headless --from run.sqlite"
    wide = shell(command, run_file.parent, clean_env).stdout.decode().splitlines()
    env = {**clean_env, "PYTHONIOENCODING": "ascii"}
    plain = shell(command, run_file.parent, env).stdout.decode("ascii").splitlines()
    assert [len(line) for line in wide] == [len(line) for line in plain]


def test_the_handler_refuses_to_decode() -> None:
    from llmprof.cli import streams

    codecs.register_error(streams.HANDLER, streams._lookalike)
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", streams.HANDLER)
    assert "a→b".encode("ascii", streams.HANDLER) == b"a>b"
