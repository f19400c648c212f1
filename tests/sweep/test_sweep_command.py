"""Sweeps with engines of known behaviour: real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

SHORT = ["--rounds", "5", "--decode-len", "8", "--traced-steps", "0"]


def journal(folder: Path) -> list[dict]:
    try:
        lines = (folder / "points.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def start(tmp_path: Path, clean_env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmprof", "sweep", *arguments],
        cwd=tmp_path,
        env=clean_env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_that_is_killed_goes_on_and_runs_nothing_twice(
    llmprof, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    asked = ["--engine", "fake:prefill_us=60000", "--context", "8,16,24", *SHORT]
    folder = tmp_path / "s"
    process = start(tmp_path, clean_env, *asked, "-o", "s")
    end = time.monotonic() + 120
    while not journal(folder) and time.monotonic() < end:
        time.sleep(0.02)
    before = journal(folder)
    time.sleep(0.3)  # into the next point
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 1 <= len(before) < 3
    done = llmprof("sweep", *asked, "-o", "s")
    assert done.returncode == 0, done.stderr
    assert "going on" in done.stderr
    found = journal(folder)
    assert len(found) == len({line["point_id"] for line in found}) == 3
    assert {line["state"] for line in found} == {"done"}
    assert len(list((folder / "runs").glob("*.sqlite"))) == 3
    assert not list((folder / "work").iterdir())
    again = llmprof("sweep", *asked, "-o", "s")
    assert again.returncode == 0
    assert len(journal(folder)) == 3
    told = llmprof("sweep", "report", "s", "--to", "md")
    assert told.returncode == 0, told.stderr
    assert "fake" in (folder / "report.md").read_text()


def test_failed_points_keep_their_reason_and_are_run_again_when_asked(llmprof, tmp_path) -> None:
    asked = ["--engine", "fake", "--engine", "fake:label=bad,crash_at=2", "--context", "8", *SHORT]
    done = llmprof("sweep", *asked, "-o", "s")
    assert done.returncode == 3, done.stderr
    (line,) = journal(tmp_path / "s")
    assert line["state"] == "failed" and "SIGKILL" in line["reason"]
    assert [row["state"] for row in line["rows"]] == ["done", "failed"]
    assert line["rows"][0]["tok_s"] > 0
    assert line["rows"][1]["tok_s"] is None and "tok_s" in line["rows"][1]["reasons"]
    llmprof("sweep", *asked, "-o", "s")
    assert len(journal(tmp_path / "s")) == 1
    llmprof("sweep", *asked, "-o", "s", "--retry", "failed")
    assert len(journal(tmp_path / "s")) == 2


def test_ctrl_c_leaves_the_running_point_for_the_next_time(
    tmp_path: Path, clean_env: dict[str, str]
) -> None:
    process = start(
        tmp_path, clean_env, "--engine", "fake:sleep_us=200000", "--context", "8,16",
        "--rounds", "50", "--decode-len", "32", "--traced-steps", "0", "-o", "s",
    )  # fmt: skip
    end = time.monotonic() + 60
    while not list((tmp_path / "s" / "work").glob("*/run.sqlite")) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "goes on with it" in said
    assert journal(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--context", "8", "-o", "s"], "empty grid"),
        (["--engine", "fake", "--vary", "btch=1", "-o", "s"], "did you mean batch"),
        (["--engine", "fake", "--context", "8"], "-o DIR"),
        (["--engine", "fake", "--context", "8", "-o", "s", "--on", "moon"], "--on moon"),
        (["nothing.toml", "-o", "s"], "grid file nothing.toml"),
        (["--engine", "fake", "--runs-at", "x", "-o", "s"], "goes with --on ray"),
        (["report", "nowhere", "--to", "md"], "no sweep here"),
    ],
)
def test_bad_input_is_one_line(llmprof, arguments: list[str], text: str) -> None:
    done = llmprof("sweep", *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_a_dry_run_runs_nothing_and_a_grid_can_be_saved(llmprof, tmp_path: Path) -> None:
    asked = ["--engine", "torch", "--model", "tiny", "--context", "64,900k"]
    done = llmprof("sweep", *asked, "--dry-run", "--save-grid", "grid.toml", "-o", "s")
    assert done.returncode == 0, done.stderr
    assert "impossible, not run" in done.stdout and "MiB" in done.stdout
    assert not (tmp_path / "s").exists()
    again = llmprof("sweep", "grid.toml", "--dry-run")
    assert again.stdout == done.stdout


def test_without_ray_the_extra_is_named(llmprof, tmp_path: Path, clean_env) -> None:
    (tmp_path / "none" / "ray").mkdir(parents=True)
    (tmp_path / "none" / "ray" / "__init__.py").write_text("raise ImportError('no ray here')")
    path = f"{tmp_path / 'none'}:{clean_env['PYTHONPATH']}"
    for where in ("ray", "ray://127.0.0.1:1"):
        asked = ["--engine", "fake", "--context", "8", "-o", "s", "--on", where]
        done = llmprof("sweep", *asked, env={"PYTHONPATH": path})
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("llmprof: --on ray needs ray: ") and "[ray]" in line
    pytest.importorskip("ray")
    (tmp_path / "bare" / "grpc").mkdir(parents=True)
    (tmp_path / "bare" / "grpc" / "__init__.py").write_text("raise ImportError('no grpc here')")
    path = f"{tmp_path / 'bare'}:{clean_env['PYTHONPATH']}"
    done = llmprof("sweep", *asked, env={"PYTHONPATH": path})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "ray://127.0.0.1:1 needs Ray's client: " in line and "[ray]" in line
    assert not (tmp_path / "s").exists()


def test_a_folder_that_holds_another_sweep(llmprof, tmp_path: Path) -> None:
    asked = ["sweep", "--engine", "fake", *SHORT, "-o", "s"]
    assert llmprof(*asked, "--context", "8").returncode == 0
    other = llmprof(*asked, "--context", "8,16")
    assert other.returncode == 2
    (line,) = other.stderr.splitlines()
    assert "s holds another sweep (1 points: context 8); use another folder with -o" in line
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    none = llmprof(*asked[:-1], "full", "--context", "8")
    assert none.returncode == 2 and "exists and is no sweep" in none.stderr
    assert len(journal(tmp_path / "s")) == 1
