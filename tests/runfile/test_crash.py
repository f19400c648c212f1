"""A killed writer and a full disk: every finished round stays readable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runfile_factory import T0, sample_engine, sample_info, sample_round, sample_run, write_run

from llmprof.errors import RunFileError
from llmprof.records import RunData
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.writer import RunFileWriter

PRELUDE = """
    import sys
    from dataclasses import replace
    from runfile_factory import *
    from llmprof.records import NvtxEvent
    engine = sample_engine(0, "torch")
    writer = RunFileWriter(sys.argv[1], replace(sample_info(), state="running"))
    writer.put_engine(engine)
"""
ROUNDS_FOR_EVER = """
    i = 0
    while True:
        writer.put_round(sample_round(i, engine, T0 + i * 10**9))
        print(i, flush=True)
        i += 1
"""
# The second call never commits: by its end the cache (2 MB) has spilled into the file, so that the
# file on disk is half old, half new, and only its journal can bring it back.
ONE_ROUND_THEN_A_BIG_TRANSACTION = """
    writer.put_round(sample_round(0, engine, T0))
    import llmprof.runfile.writing.writer as module
    def seen(self, when):
        print("in the middle", flush=True)
        sys.stdin.read()
    module.RunFileWriter._seen = seen
    writer.put_nvtx([NvtxEvent(T0, T0 + 1, "x" * 200, 1, 1, "torch") for _ in range(50_000)])
"""


@contextmanager
def writing(file: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    code = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def read(file: Path) -> RunData:
    with RunFileReader(file) as reader:
        return reader.run_data()


def test_kill_in_a_loop_of_rounds(tmp_path: Path) -> None:
    for attempt in range(3):
        file = tmp_path / f"run{attempt}.sqlite"
        with writing(file, ROUNDS_FOR_EVER) as process:
            assert process.stdout is not None
            last = [int(process.stdout.readline()) for _ in range(5 + 7 * attempt)][-1]
        data = read(file)
        assert len(data.rounds) >= last + 1
        assert [r.round_id for r in data.rounds] == list(range(len(data.rounds)))
        assert all(r.steps == 8 for r in data.rounds)
        assert data.info.state == "running"


@pytest.fixture
def hot(tmp_path: Path) -> Path:
    """A file whose writer was killed inside a transaction that had reached the disk."""
    file = tmp_path / "hot" / "run.sqlite"
    file.parent.mkdir()
    with writing(file, ONE_ROUND_THEN_A_BIG_TRANSACTION) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
    assert file.with_name("run.sqlite-journal").stat().st_size > 0
    assert file.stat().st_size > 5_000_000
    return file


def test_kill_in_a_big_transaction(hot: Path) -> None:
    data = read(hot)
    assert len(data.rounds) == 1
    assert list(hot.parent.iterdir()) == [hot], "the journal was played back and removed"
    assert hot.stat().st_size < 1_000_000


def test_a_live_writer_is_not_disturbed(tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    with writing(file, ONE_ROUND_THEN_A_BIG_TRANSACTION) as process:
        assert process.stdout is not None
        process.stdout.readline()
        journal = file.with_name("run.sqlite-journal").read_bytes()
        try:
            assert len(read(file).rounds) == 1
        except RunFileError as why:
            assert "another program is writing it" in str(why)
        assert file.with_name("run.sqlite-journal").read_bytes() == journal


def test_a_hot_journal_in_a_read_only_folder(hot: Path) -> None:
    with mounted(hot.parent.parent / "mnt", "32m") as folder:
        for found in hot.parent.iterdir():
            shutil.copy(found, folder)
        mount("-o", "remount,ro", str(folder))
        assert len(read(folder / "run.sqlite").rounds) == 1
        assert (folder / "run.sqlite-journal").exists()


def test_a_journal_that_names_another_file_is_refused(tmp_path: Path) -> None:
    """Playing back a journal with a super-journal may delete the file that it names."""
    file = write_run(tmp_path / "run.sqlite", sample_run())
    journal = file.with_name("run.sqlite-journal")
    journal.write_bytes(b"\0" * 512 + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(RunFileError, match="journal"):
        read(file)


@pytest.mark.parametrize("junk", [b"x", b"junk" * 1000])
def test_a_journal_of_junk_changes_nothing(tmp_path: Path, junk: bytes) -> None:
    file = write_run(tmp_path / "run.sqlite", sample_run())
    whole = file.read_bytes()
    file.with_name("run.sqlite-journal").write_bytes(junk)
    assert len(read(file).rounds) == 8
    assert file.read_bytes() == whole


# -- full disk -----------------------------------------------------------------------------------


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_between_rounds(tmp_path: Path) -> None:
    engine = sample_engine(0, "torch")
    with mounted(tmp_path / "mnt", "1m") as folder:
        file = folder / "run.sqlite"
        done = 0
        with RunFileWriter(file, sample_info()) as writer:
            writer.put_engine(engine)
            with pytest.raises(
                RunFileError, match=r"disk full while writing .*need 0\.\d+ MB, 0\.\d+ MB free"
            ) as full:
                while True:
                    record = sample_round(done, engine, T0 + done * 10**9, step_ns=(10,) * 200)
                    writer.put_round(record)
                    done += 1
            assert f"{done} rounds are kept" in str(full.value)
            assert "free space or use -o elsewhere" in str(full.value)
            assert str(file) in str(full.value)
        assert done > 3
        assert [r.round_id for r in read(file).rounds] == list(range(done))


def test_full_disk_inside_a_big_transaction_then_room_again(tmp_path: Path) -> None:
    engine = sample_engine(0, "torch")
    with mounted(tmp_path / "mnt", "8m") as folder:
        file, ballast = folder / "run.sqlite", folder / "ballast"
        ballast.write_bytes(b"0" * 7_000_000)
        with RunFileWriter(file, sample_info()) as writer:
            writer.put_engine(engine)
            writer.put_round(sample_round(0, engine, T0))
            big = {name: [T0 + i for i in range(200_000)] for name in ("start", "end")}
            big |= {name: [1] * 200_000 for name in ("eventClass", "nameId", "returnValue")}
            writer.string_id("cudaLaunchKernel")
            with pytest.raises(RunFileError, match=r"disk full.*1 round is kept"):
                writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", big)
            assert len(read(file).rounds) == 1
            ballast.unlink()
            writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", big)
            writer.put_round(sample_round(1, engine, T0 + 10**9))
            writer.set_state("failed", "the disk was full for a while")
        assert len(read(file).rounds) == 2


LIMITED = """
import resource, sys
from llmprof.errors import RunFileError
from llmprof.runfile.writing.writer import RunFileWriter
from runfile_factory import sample_info
limit = int(sys.argv[2])
with RunFileWriter(sys.argv[1], sample_info()) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rows = {name: range(1, 100_001) for name in ("start", "end", "eventClass", "globalTid",
            "correlationId", "nameId", "returnValue")}
    try:
        writer.bulk("CUPTI_ACTIVITY_KIND_RUNTIME", {n: list(c) for n, c in rows.items()})
    except RunFileError as why:
        print(why)
"""


def test_a_limit_on_file_sizes_is_not_called_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(file), "2000000"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "has reached the limit on file sizes of 2.00 MB (ulimit -f)" in done.stdout, done.stderr
    assert "disk full" not in done.stdout and file.exists()


def test_a_disk_without_room_for_a_file_leaves_none(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "64k") as folder:
        with pytest.raises(RunFileError, match=r"disk full while writing.*0 rounds are kept"):
            RunFileWriter(folder / "run.sqlite", sample_info())
        assert list(folder.iterdir()) == []


def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "1m") as folder:
        mount("-o", "remount,ro", str(folder))
        with pytest.raises(RunFileError, match=r"run\.sqlite: cannot be created \(Read-only"):
            RunFileWriter(folder / "run.sqlite", sample_info())
