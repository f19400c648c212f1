"""A file from anywhere is read safely: one clear line, nothing in it is executed."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runfile_factory import sample_run, write_run

from llmprof.errors import RunFileError
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import statements


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def change(path: Path, *changes: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in changes:
            db.execute(statement)
        db.commit()


def refuse(file: Path, hint: str) -> None:
    with pytest.raises(RunFileError, match=hint) as failed, RunFileReader(file) as reader:
        reader.run_data()
        reader.nvtx_op_totals(0)
    message = str(failed.value)
    assert message.isprintable() and file.name.split(".")[0] in message


def test_what_is_no_sqlite_file(tmp_path: Path) -> None:
    refuse(tmp_path / "missing.sqlite", "no such file")
    refuse(tmp_path, "folder")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "not a regular file")
    (tmp_path / "empty").touch()
    refuse(tmp_path / "empty", "empty")
    (tmp_path / "text").write_text("SQLite? no")
    refuse(tmp_path / "text", "no SQLite file")
    (tmp_path / "head").write_bytes(b"SQLite format 3\0")
    refuse(tmp_path / "head", "truncated")


def test_sqlite_files_that_are_no_run(tmp_path: Path) -> None:
    other, export = tmp_path / "other", tmp_path / "export"
    change(other, "CREATE TABLE a (b)")
    refuse(other, "neither a run of llmprof nor an nsys export")
    change(export, *statements()["StringIds"], *statements()["META_DATA_EXPORT"])
    with RunFileReader(export) as reader:
        assert reader.kind() == "nsys" and not reader.is_llmprof()
        assert reader.run_data().engines == []


def test_a_newer_schema_says_update(file: Path) -> None:
    write_run(file, sample_run())
    change(file, "UPDATE META_DATA_EXPORT SET value = '99' WHERE name LIKE 'LLMPROF%'")
    refuse(file, "newer llmprof .schema 99.*update")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE LLMPROF_RUN SET environment = '[[[['",
        f"UPDATE LLMPROF_RUN SET environment = '{'[' * 100_000}'",
        "UPDATE LLMPROF_RUN SET command = '[1]'",
        "UPDATE LLMPROF_RUN SET state = 'bored\x1b[2J'",
        "UPDATE LLMPROF_RUN SET t0_ns = 'now'",
        "INSERT INTO LLMPROF_RUN SELECT * FROM LLMPROF_RUN",
        'UPDATE LLMPROF_ENGINE SET info = \'{"threads": "many"}\'',
        "UPDATE LLMPROF_ENGINE SET options = x'00ff'",
        "UPDATE LLMPROF_ROUND SET tokens = '[[1.5]]'",
        "UPDATE LLMPROF_ROUND SET energy_mj = '[1]'",
        "UPDATE LLMPROF_ROUND SET pid = 1e300",
        "DELETE FROM LLMPROF_STEP WHERE step = 1",
        "UPDATE LLMPROF_STEP SET end_ns = 'late' WHERE step = 1",
        "UPDATE LLMPROF_GPU_SAMPLE SET power_w = 'much'",
        "DROP TABLE LLMPROF_CLOCK",
        "ALTER TABLE LLMPROF_GPU_DEVICE DROP COLUMN uuid",
        "ALTER TABLE LLMPROF_ROUND DROP COLUMN tokens",
        "DELETE FROM META_DATA_EXPORT WHERE name = 'LLMPROF_SCHEMA_VERSION'",
        "UPDATE META_DATA_EXPORT SET value = '1\x1b]0;x\x07' WHERE name LIKE 'LLMPROF%'",
    ],
)
def test_wrong_values_are_damage(file: Path, statement: str) -> None:
    write_run(file, sample_run())
    change(file, statement)
    refuse(file, "damaged")


@pytest.mark.parametrize(
    "code",
    [
        ["CREATE TRIGGER t AFTER UPDATE ON LLMPROF_RUN BEGIN SELECT 1; END"],
        ["DROP TABLE LLMPROF_LOG", "CREATE VIEW llmprof_log AS SELECT 'a' label, 'b' text"],
        ["DROP TABLE LLMPROF_LOG", "CREATE VIRTUAL TABLE LLMPROF_LOG USING fts5(label, text)"],
    ],
)
def test_code_in_place_of_a_table_is_refused(file: Path, code: list[str]) -> None:
    write_run(file, sample_run())
    change(file, *code)
    refuse(file, "refused")


def test_text_with_escapes_and_broken_utf8_is_only_text(file: Path) -> None:
    write_run(file, sample_run())
    change(file, "UPDATE LLMPROF_LOG SET text = CAST(x'1b5b324aff00' AS TEXT)")
    with RunFileReader(file) as reader:
        assert reader.run_data().logs == {"torch": "\x1b[2J\ufffd\0"}


def test_truncation_is_named(file: Path) -> None:
    write_run(file, sample_run())
    whole = file.read_bytes()
    for size in (101, 4096, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refuse(file, f"truncated: {size} of {len(whole)} bytes")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_corrupt_pages_never_escape_as_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    good, file = tmp_path / "good.sqlite", tmp_path / "run.sqlite"
    if not good.exists():
        write_run(good, sample_run(rounds=1))
    damage = bytearray(good.read_bytes())
    at = data.draw(st.integers(0, len(damage) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=64))
    damage[at : at + len(junk)] = junk
    file.write_bytes(damage)
    try:
        with RunFileReader(file) as reader:
            reader.run_data()
            reader.nvtx_op_totals(0)
    except RunFileError as why:
        assert str(why).isprintable()
