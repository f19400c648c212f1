"""Bad input: one clear line, a documented exit code, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "torhc"], "did you mean 'torch'?"),
        (["--engine", "zzz"], "known:"),
        (["--engine", "torch@/no/python"], "no interpreter at /no/python"),
        (["--engine", "torch:dtype"], "is not key=value"),
        (["--decode-len", "-5"], "--decode-len: '-5' is not an integer ≥ 1"),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "many"], "--rounds"),
        (["--trace", "everything"], "--trace"),
        (["--prompt", "a", "--prompt-len", "3"], "not allowed with"),
        (["--model", "/no/such/model.gguf"], "/no/such/model.gguf"),
        (["--model", "tinny"], "tiny"),
        (["--model", "tiny", "--prompt", "hello"], "needs a tokenizer"),
        (["--model", "tiny", "--prompt-len", "9999999"], "context"),
        (["--model", "tiny", "--prompt-ids", "/no/such/file"], "--prompt-ids /no/such/file"),
        (["--engine", "fake", "-o", "run.db"], ".sqlite"),
        (["--engine", "fake", "-o", "/proc/nowhere/run.sqlite"], "/proc/nowhere"),
        (["--from", "/no/such.sqlite"], "/no/such.sqlite"),
        (["--from", "x.sqlite", "--engine", "torch"], "--from"),
        (["--from", "x.sqlite", "--rounds", "3"], "takes no --rounds"),
        (["--host-native", "--host-blocking"], "not allowed with"),
        (["--engine", "fake", "--trace", "steps", "--host-native"], "--trace steps leaves out"),
        (["--modle", "tiny"], "did you mean --model?"),
        (["--engin=fake"], "did you mean --engine?"),
    ],
)
def test_one_clear_line_and_exit_code_2(llmprof, arguments: list[str], words: str) -> None:
    done = llmprof("--headless", *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("word", "words"),
    [("opne", "did you mean open?"), ("diff", "did you mean compare?"),
     ("zzz", "commands: record, open"),
     ("run.sqlite", "llmprof open run.sqlite")],
)  # fmt: skip
def test_a_word_that_is_no_command(llmprof, word: str, words: str) -> None:
    done = llmprof(word, "x")
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_an_existing_run_is_not_overwritten(llmprof, tmp_path: Path) -> None:
    (tmp_path / "mine.sqlite").write_text("precious")
    done = llmprof("--headless", "--engine", "fake", "-o", "mine.sqlite")
    assert done.returncode == 2
    assert "mine.sqlite" in done.stderr
    assert (tmp_path / "mine.sqlite").read_text() == "precious"


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"not a gguf at all" * 100]
)
def test_a_corrupt_gguf_is_one_line(llmprof, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    done = llmprof("--headless", "--engine", "torch", "--model", "bad.gguf")
    assert done.returncode == 2, done.stderr
    assert "bad.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_package_names_the_extra(llmprof, tmp_path: Path) -> None:
    """An interpreter that has nothing but the standard library."""
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    done = llmprof("--headless", "--engine", f"torch@{python}", "--model", "tiny")
    assert done.returncode == 2, done.stderr
    # That interpreter runs our package from where it lies, and has neither it nor a `pip` of PATH.
    assert f"{python} -m pip install " in done.stderr and "[torch]'" in done.stderr


def test_open_without_a_terminal_says_what_to_do(llmprof, tmp_path: Path) -> None:
    run = tmp_path / "run.sqlite"
    llmprof("--headless", "--engine", "fake", "--rounds", "1", "-o", str(run))
    done = llmprof("open", str(run))
    assert done.returncode == 2
    assert "--from" in done.stderr


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0" + b"\0" * 200])
def test_a_file_that_is_no_run_is_one_line(llmprof, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.sqlite").write_bytes(content)
    done = llmprof("--headless", "--from", "x.sqlite")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
