"""The forced command: llmprof and nothing else, whatever the client sends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprof.cli.ssh_command import words
from llmprof.errors import UsageError


def forced(
    tmp_path: Path, command: str | None, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    environment = {**env, **({} if command is None else {"SSH_ORIGINAL_COMMAND": command})}
    return subprocess.run(
        [sys.executable, "-m", "llmprof.cli.ssh_command"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", []),
        ("llmprof", []),
        ("llmprof --headless --json", ["--headless", "--json"]),
        ("llmprof --prompt 'two words; $(id)'", ["--prompt", "two words; $(id)"]),
    ],
)
def test_the_command_is_split_and_nothing_in_it_expands(command: str, expected: list[str]) -> None:
    assert words(command) == expected


@pytest.mark.parametrize(
    "command",
    [
        "id",
        "bash -c llmprof",
        "/opt/llmprof/bin/llmprof",
        "LLMPROF_LOCKED= llmprof",
        "'llmprof doctor'",
        "llmprof 'open",
        "llmprof\nid",
        "llmprof \x1b[2J",
        "llmprof " + "x" * 20_000,
        "internal-sftp",
        "scp -t .",
    ],
)
def test_anything_else_is_refused(command: str) -> None:
    with pytest.raises(UsageError):
        words(command)


@given(st.text(max_size=60))
def test_any_text_is_words_for_llmprof_or_refused(text: str) -> None:
    try:
        found = words(text)
    except UsageError as why:
        assert "\n" not in str(why)
        assert "\x1b" not in str(why)
    else:
        assert found == [] or text.lstrip()[:1] in ("l", "'", '"', "\\")
        assert all(isinstance(word, str) for word in found)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("llmprof; id", "this account runs llmprof only"),
        ("llmprof ;id", "unknown command"),
        ("llmprof --engine torch@/bin/sh", "cannot choose the interpreter"),
        ("llmprof --engine=torch@/bin/sh:dtype=x", "cannot choose the interpreter"),
        ("llmprof -o /tmp/x.sqlite", "below its home"),
        ("llmprof -o../x.sqlite", "below its home"),
        ("llmprof --output=.ssh/x.sqlite", "below its home"),
        ("llmprof model synth tiny-128 --engine exllama -o ~/.config", "below its home"),
        ("llmprof model prepare --engine mlc --from x --artifact-path /tmp/x", "below its home"),
        ("llmprof model prepare --engine mlc --from x --python /bin/sh", "choose the interpreter"),
        ("llmprof export x.sqlite --to json -o .ssh/x", "below its home"),
        ("llmprof export .ssh/x.sqlite --to json", "below its home"),
    ],
)
def test_ways_out_end_with_one_line_and_code_2(tmp_path, clean_env, command, says) -> None:
    done = forced(tmp_path, command, clean_env)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "uid=" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.sqlite"))


def test_config_files_that_the_user_can_write_are_not_read(tmp_path, clean_env) -> None:
    evil = '[engines.torch]\npython = "/bin/sh"\n'
    (tmp_path / "llmprof.toml").write_text(evil)
    folder = Path(clean_env["XDG_CONFIG_HOME"]) / "llmprof"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(evil)
    assert "/bin/sh" not in forced(tmp_path, "llmprof engines", clean_env).stdout
    open_session = subprocess.run(
        [sys.executable, "-m", "llmprof", "engines"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_env,
        timeout=60,
    )
    assert "/bin/sh" in open_session.stdout


def test_a_run_works_and_is_kept(tmp_path, clean_env) -> None:
    command = "llmprof --json --engine fake:step_us=300 --rounds 2 --decode-len 8 --prompt-len 4"
    done = forced(tmp_path, f"{command} --traced-steps 0 -o kept.sqlite", clean_env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.sqlite").read_bytes()[:6] == b"SQLite"
