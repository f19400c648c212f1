"""Fixtures that every test may use. Nothing here mocks llmprof itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_once import FOLDER

PLUGIN = Path(__file__).parent / "support" / "plugin"


def pytest_configure(config: pytest.Config) -> None:
    # What starts the tests may ignore signals (a shell's background job, nohup), and programs that
    # tests start would inherit that: they would go on where they should end.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, own)
    # Workers inherit it from the process that starts them, which removes it.
    if FOLDER not in os.environ:
        made = os.environ[FOLDER] = tempfile.mkdtemp(prefix="llmprof-tests-")
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))
    # Side by side, each worker's threads would take the other's cores.
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The fakes are found by entry point, as an installed third-party package would be.
    sys.path.insert(0, str(PLUGIN))


@pytest.fixture(autouse=True)
def a_known_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures must not depend on the terminal that the tests were started from."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("LLMPROF_GLYPHS", "unicode")
    # pytest-xdist gives its workers a terminal of 80 columns.
    for name in ("NO_COLOR", "FORCE_COLOR", "TEXTUAL_THEME", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clean_env(tmp_path: Path) -> dict[str, str]:
    """An environment with its own home, so that no test reads or writes the user's files."""
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(PLUGIN),
        "OMP_NUM_THREADS": "1",
    }


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def llmprof(tmp_path: Path, clean_env: dict[str, str]) -> Run:
    """``llmprof("--engine", "fake", …)``: the real command in a real process."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        env = {**clean_env, **options.pop("env", {})}  # type: ignore[dict-item]
        return subprocess.run(
            [sys.executable, "-m", "llmprof", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            **{"timeout": 120, **options},  # type: ignore[call-overload]
        )

    return run
