"""Names that two programs may not share."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmprof import newfiles
from llmprof.errors import UsageError
from llmprof.models.new_folder import new_folder
from llmprof.newfiles import OwnFolder, alone, first_free, hidden_beside, publish, write_whole


def take(folder: str) -> str:
    return first_free(Path(folder), "run", ".sqlite").name


def test_programs_at_once_each_get_a_name(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        names = pool.map(take, [str(tmp_path)] * 24, chunksize=1)
    assert len(set(names)) == 24 == len(list(tmp_path.iterdir()))
    assert {"run.sqlite", "run-2.sqlite", "run-24.sqlite"} <= set(names)
    assert first_free(tmp_path, "shot", ".svg", numbered=True).name == "shot-1.svg"


@pytest.mark.parametrize("folder", [False, True])
def test_finished_work_never_replaces_another(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "out"
    with hidden_beside(target) as hidden:
        part = hidden / "out"
        if folder:
            part.mkdir()
            (part / "a").write_text("mine")
        else:
            part.write_text("mine")
        target.write_text("another's")  # it came while we worked
        with pytest.raises(FileExistsError):
            publish(part, target)
        assert target.read_text() == "another's"
        target.unlink()
        publish(part, target)
    assert (target / "a" if folder else target).read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "setup.json"
    for text in ("one", "two"):
        write_whole(target, text)
        assert target.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["setup.json"]


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with alone(lock):
        code = (
            "import sys; from pathlib import Path; from llmprof.newfiles import alone\n"
            "with alone(Path(sys.argv[1])): pass"
        )
        other = subprocess.run([sys.executable, "-c", code, str(lock)], capture_output=True)
        assert b"BlockingIOError" in other.stderr
    with alone(lock):
        pass


def test_two_who_make_one_model_of_mlc(tmp_path: Path) -> None:
    from llmprof.models.mlc.prepare import _alone

    lock = tmp_path / "x.lock"
    code = (
        "import sys; from pathlib import Path; from llmprof.newfiles import alone\n"
        "with alone(Path(sys.argv[1])): print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as other:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with pytest.raises(UsageError, match="another llmprof makes the same model"), _alone(lock):
            pass
        other.communicate(b"\n")
    with _alone(lock):
        pass


def test_a_model_folder_that_came_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write() -> None:
        with new_folder(target, 10) as partial:
            (partial / "weights").write_text("late")
            target.mkdir()
            (target / "weights").write_text("first")

    with pytest.raises(UsageError, match="exists and is not overwritten"):
        write()
    assert (target / "weights").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


ONE = [
    "--headless",
    "--engine",
    "fake",
    "--decode-len",
    "4",
    "--rounds",
    "1",
    "--traced-steps",
    "0",
]


def start(env: dict[str, str], folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmprof", *ONE, *more]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=-3, stderr=-1)


def test_runs_at_once_have_files_of_their_own(tmp_path: Path, clean_env: dict[str, str]) -> None:
    started = [start(clean_env, tmp_path) for _ in range(4)]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    files = list((tmp_path / "data" / "llmprof" / "runs").iterdir())
    assert len(files) == 4
    for file in files:
        rows = sqlite3.connect(file).execute("SELECT state FROM LLMPROF_RUN").fetchall()
        assert rows == [("finished",)]


def test_of_runs_into_one_file_one_is_kept(tmp_path: Path, clean_env: dict[str, str]) -> None:
    started = [start(clean_env, tmp_path, "-o", "it.sqlite") for _ in range(3)]
    said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert sorted(process.returncode for process in started) == [0, 2, 2], said
    refused = [text for p, text in zip(started, said, strict=True) if p.returncode]
    assert all("it.sqlite: exists already" in text for text in refused)
    rows = sqlite3.connect(tmp_path / "it.sqlite").execute("SELECT state FROM LLMPROF_RUN")
    assert rows.fetchall() == [("finished",)]


@pytest.mark.parametrize("more", [(), ("-o", "mine.sqlite")])
def test_nothing_is_left_of_a_run_in_which_nothing_ran(
    tmp_path: Path, clean_env: dict[str, str], more: tuple[str, ...]
) -> None:
    command = [*ONE, *more, "--engine", "torch:dtipe=fp16"]
    done = subprocess.run(
        [sys.executable, "-m", "llmprof", *command[:1], *command[3:]],
        cwd=tmp_path,
        env=clean_env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "llmprof: torch: unknown option 'dtipe'" in done.stderr
    assert "run file" not in done.stderr
    assert not list(tmp_path.rglob("*.sqlite"))


OWNER = """
import sys, time
from llmprof.newfiles import OwnFolder
made = OwnFolder("llmprof-x-", sys.argv[1])
(made.path / "big").write_bytes(bytes(9))
print(made.path, flush=True)
time.sleep(60)
"""


def owner(place: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", OWNER, str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    made = Path(process.stdout.readline().strip())
    old = time.time() - 2 * newfiles.YOUNG_S
    os.utime(made, (old, old))
    return process, made


def test_folders_of_killed_processes_go_with_the_next_one_that_is_made(tmp_path: Path) -> None:
    (dead, left), (alive, held) = owner(tmp_path), owner(tmp_path)
    try:
        dead.kill()
        dead.wait()
        others = [tmp_path / "llmprof-y-1", tmp_path / "llmprof-x-young"]
        for path in others:
            path.mkdir()
        os.utime(others[0], (0, 0))
        target = tmp_path / "target"
        target.mkdir()
        os.utime(target, (0, 0))
        (tmp_path / "llmprof-x-link").symlink_to(target)
        (tmp_path / "llmprof-x-file").write_text("")
        with OwnFolder("llmprof-x-", tmp_path) as mine:
            assert mine.is_dir() and not left.exists()
            assert (held / "big").exists() and target.is_dir() and all(p.is_dir() for p in others)
            assert (tmp_path / "llmprof-x-file").exists()
        assert not mine.exists() and held.exists()
    finally:
        for process in (dead, alive):
            process.kill()
            process.communicate()
