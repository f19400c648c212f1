"""A rank that is killed in the middle of a run: the run ends, says which, and keeps what came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmprof.analysis.view.opening import open_run
from llmprof.errors import LlmprofError

pytest.importorskip("torch", reason="torch is not installed")
PATIENCE_S = 120.0


def rank_1(parent: int) -> int | None:
    """The process of rank 1 under ``parent``'s worker."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
            worker = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            above = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"RANK=1" in words and b"rank_process" in command and above == parent:
            return int(folder.name)
    return None


def rounds_in(file: Path) -> int:
    try:
        return len(open_run(file).rounds)
    except (LlmprofError, OSError):
        return 0


def test_a_killed_rank_ends_the_run_which_keeps_its_rounds(tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "llmprof", "--headless", "--engine", "torch:device=cpu",
            "--tp", "2", "--model", "tiny", "--prompt-len", "8", "--decode-len", "8",
            "--rounds", "100000", "--trace", "steps", "-o", str(file),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE_S
        while rounds_in(file) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        victim = rank_1(process.pid)
        assert victim is not None, process.communicate()[1]
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 3
    assert "Traceback" not in said
    assert "rank 1" in said
    assert "SIGKILL" in said
    data = open_run(file)
    assert len(data.rounds) >= 3
    assert "rank 1" in (data.engines[0].failure or "")
    assert rank_1(process.pid) is None


def test_an_engine_that_is_not_split_says_who_is(llmprof) -> None:
    done = llmprof("--headless", "--engine", "transformers", "--tp", "2", "--model", "tiny")
    assert done.returncode == 2
    assert "transformers: tp=2: llmprof runs this engine on one GPU" in done.stderr
