"""SQLite files in states that are no damage: WAL mode, read-only folders, no file locks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from capture_factory import Capture

COMPILER = shutil.which("cc") or shutil.which("gcc")
SETPRIV = shutil.which("setpriv")
READ = """
import sys
from pathlib import Path
from llmprof.runfile.reader import RunFileReader
with RunFileReader(Path(sys.argv[1])) as reader:
    print(len(reader.ranges()))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "capture.sqlite"
    with Capture(path) as made:
        made.process()
        made.eager_steps(count=5)
    return path


def in_wal_mode(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("CREATE TABLE note (a)")


def read(path: Path, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", READ, str(path)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def without_capabilities() -> list[str]:
    """Root may write everywhere; without capabilities it is bound by modes as others are."""
    if os.geteuid():
        return []
    if SETPRIV is None:
        pytest.skip("setpriv (util-linux) is missing")
    return [SETPRIV, "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all"]


def test_wal_mode_in_a_folder_that_cannot_be_written(file: Path) -> None:
    in_wal_mode(file)
    file.chmod(0o444)
    file.parent.chmod(0o555)
    try:
        done = read(file, *without_capabilities())
    finally:
        file.parent.chmod(0o755)
    assert (done.stdout, done.stderr) == ("5\n", "")
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_what_is_in_a_wal_alone_is_read_too(file: Path, tmp_path: Path) -> None:
    """As a program leaves it that was killed: the last row of the ranges is deleted in the WAL."""
    target = tmp_path / "ro"
    target.mkdir()
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    db.execute("DELETE FROM NVTX_EVENTS WHERE rowid = 5")
    for name in (file.name, file.name + "-wal"):
        shutil.copyfile(file.with_name(name), target / name)
    db.close()
    copied = target / file.name
    target.chmod(0o555)
    try:
        done = read(copied, *without_capabilities())
    finally:
        target.chmod(0o755)
    assert (done.stdout, done.stderr) == ("4\n", "")


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("locks") / "no_locks.so"
    source = Path(__file__).parents[1] / "support" / "stubs" / "no_locks.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def test_a_file_system_without_locks_can_be_read(file: Path, no_locks: dict[str, str]) -> None:
    done = read(file, **no_locks)
    assert (done.stdout, done.stderr) == ("5\n", "")
    in_wal_mode(file)
    done = read(file, **no_locks)
    assert (done.stdout, done.stderr) == ("5\n", "")


def test_a_journal_without_locks_is_named(file: Path, no_locks: dict[str, str]) -> None:
    file.with_name(file.name + "-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" + bytes(600))
    done = read(file, **no_locks)
    assert "has no locks" in done.stderr and "copy both to a local disk" in done.stderr
    assert "damaged" not in done.stderr and "try again" not in done.stderr


WRITE = """
import sys
from pathlib import Path
from runfile_factory import sample_run, write_run
write_run(Path(sys.argv[1]), sample_run())
"""


def test_a_run_is_written_where_there_are_no_locks(
    tmp_path: Path, no_locks: dict[str, str]
) -> None:
    path = tmp_path / "run.sqlite"
    support = str(Path(__file__).parents[1] / "support")
    env = {**os.environ, **no_locks, "PYTHONPATH": support}
    subprocess.run([sys.executable, "-c", WRITE, str(path)], env=env, check=True, timeout=60)
    from llmprof.runfile.reader import RunFileReader

    with RunFileReader(path) as reader:
        assert reader.run_data().rounds
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_lock_that_is_held_is_no_missing_lock(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        done = read(file)
    assert "another program is writing it; try again" in done.stderr
