"""The tasks of ``docs/tasks.md``, typed at a pseudo-terminal of 80×24."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import recorder_build
from test_terminal import ROOT, Terminal, until

KEYS = {"enter": "\r", "tab": "\t", "esc": "\x1b", "down": "\x1b[B", "up": "\x1b[A"}
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
A_MINUTE = 60
"""Keys: one a second, commands included only where they are not typed for starting it."""


class Task:
    """One section of the page."""

    def __init__(self, title: str, text: str) -> None:
        self.title = title
        (block,) = re.findall(r"```keys\n(.*?)```", text, re.S)
        self.lines = block.strip().splitlines()
        (wanted,) = re.findall(r"^Screen: (.*)$", text, re.M)
        self.wanted = re.findall(r"`([^`]+)`", wanted)


def tasks() -> list[Task]:
    parts = re.split(r"^## (\d+\. .*)$", PAGE, flags=re.M)[1:]
    return [Task(title, text) for title, text in zip(parts[::2], parts[1::2], strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    script = ROOT / "tests" / "support" / "task_files.py"  # as the page says
    subprocess.run([sys.executable, script, made], check=True, capture_output=True)
    return made


@pytest.fixture
def terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    monkeypatch.chdir(folder)
    made: list[Terminal] = []

    def make(command: str, **environ: str) -> Terminal:
        words = shlex.split(command)
        assert words[0] == "llmprof"
        home = {"XDG_DATA_HOME": str(folder / "data"), "XDG_STATE_HOME": str(folder / "state"),
                "PYTHONPATH": str(ROOT)}  # fmt: skip
        words = [sys.executable, "-m", *words]
        made.append(Terminal(words, 80, 24, **home, **environ))
        return made[-1]

    yield make
    for one in made:
        one.close()


def keys_of(line: str) -> list[str]:
    """``3 n 'text' enter`` to what a terminal sends."""
    sent: list[str] = []
    for word in re.findall(r"'[^']*'|\S+", line):
        sent += list(word[1:-1]) if word.startswith("'") else [KEYS.get(word, word)]
    return sent


def test_the_page_has_ten_tasks_of_under_a_minute() -> None:
    assert len(tasks()) == 10
    for task in tasks():
        count = sum(len(keys_of(line)) for line in task.lines if not line.startswith("$"))
        assert count <= A_MINUTE // 2, task.title  # the other half is for looking


@pytest.mark.parametrize(
    "task", [t for t in tasks() if not t.title.startswith("2")], ids=lambda task: task.title
)
def test_the_answer_is_on_the_screen(task: Task, terminal: Callable[..., Terminal]) -> None:
    shown: Terminal | None = None
    for line in task.lines:
        if line.startswith("$ "):
            shown = terminal(line[2:])
            continue
        assert shown is not None
        shown.until("q Quit")
        if "sweep" not in task.lines[0]:
            # What is read, as the header says it until all is there.
            shown.until_not("reading", "analysing", "laying out", "looking")
        for key in keys_of(line):
            shown.press(key)
            shown.read()
    last = shown
    assert last is not None
    until(lambda: " ".join(last.read().split()), *task.wanted)  # lines wrap
    shown = last
    if "--fail-on" in task.lines[-1]:
        assert shown.code() == 4


def test_recording_a_script(folder: Path, terminal: Callable[..., Terminal]) -> None:
    """The stub driver stands in for a GPU, its program for the script's kernels."""
    if recorder_build.compiler() is None:
        pytest.skip("no C compiler to build the recorder with")
    built = recorder_build.make(folder, ("-g",))
    (folder / "serve.py").write_text(
        f"import os\nos.execv({str(built.program)!r}, ['serve', 'return', '300', '1', '1000'])\n"
    )
    task = next(task for task in tasks() if task.title.startswith("2"))
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    shown = terminal(
        task.lines[0][2:], LD_LIBRARY_PATH=str(built.folder), XDG_CACHE_HOME=str(folder / "cache"),
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
    )  # fmt: skip
    shown.until("record a program")
    for key in keys_of(task.lines[1]):
        shown.press(key)
        shown.read()
    shown.until(*task.wanted)
    shown.press("q")
    assert shown.code() == 0
