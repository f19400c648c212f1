"""Rows that reach a file as pages are the rows that an insert writes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runfile_factory import sample_info

from llmprof.errors import RunFileError
from llmprof.records import Missing
from llmprof.runfile.database import RunDatabase
from llmprof.runfile.pages import cells, image, transfer
from llmprof.runfile.schema import BulkTable, statements
from llmprof.runfile.writing.writer import RunFileWriter

KERNEL, CALL = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"
needs_deserialize = pytest.mark.skipif(
    not hasattr(sqlite3.Connection, "deserialize"), reason="Python 3.10 inserts all rows"
)
HERE = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")])
Columns = dict[str, Any]


def columns_of(table: str) -> tuple[tuple[str, ...], set[str]]:
    """All columns of a table; those that must not be NULL."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(statements()[table][0])
        found = db.execute(f"PRAGMA table_info({table})").fetchall()
    return tuple(row[1] for row in found), {row[1] for row in found if row[3]}


def content(file: Path, table: str) -> list[tuple[Any, ...]]:
    """Every row with its rowid, and that the file is sound."""
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid").fetchall()


@contextmanager
def database(file: Path, big_pages: bool = True) -> Iterator[RunDatabase]:
    file.unlink(missing_ok=True)
    db = RunDatabase(file, unmarked=big_pages)
    try:
        with db.transaction():
            db.require("StringIds")  # every transaction may write strings
        yield db
    finally:
        db.close()


def write(
    file: Path, blocks: list[tuple[str, Columns, dict[str, int], set[str]]], big_pages: bool = True
) -> None:
    """All blocks in one transaction."""
    with database(file, big_pages) as db, db.transaction():
        for table, bound, fixed, zero_is_null in blocks:
            db.require(table)
            count = len(next(iter(bound.values())))
            db.insert_columns(table, bound, fixed, count, zero_is_null)


@contextmanager
def only_inserts() -> Iterator[None]:
    """As with a Python or an SQLite that can't take pages over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "definition_of", lambda sql: None)
        yield


@contextmanager
def no_inserts() -> Iterator[None]:
    """Values are bound nowhere: the rows come as pages."""

    def never(*_: Any) -> None:
        raise AssertionError("rows were inserted one by one")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmprof.runfile.database.insert_bound", never)
        yield


BITS = (0, 1, 7, 8, 15, 16, 23, 24, 31, 32, 47, 48, 62, 63)


@st.composite
def a_column(draw: st.DrawFn) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Makes a column of any number of rows: integers around a border between two widths."""
    bits, sign = draw(st.sampled_from(BITS)), draw(st.sampled_from((1, -1, 0)))
    zeros, dtype = draw(st.sampled_from((0.0, 0.3, 1.0))), draw(st.sampled_from("biuq"))
    stride = draw(st.integers(1, 3))

    def make(random: np.random.Generator, count: int) -> np.ndarray:
        high = (1 << bits) - 1
        low = -high - 1 if sign <= 0 else 0
        values = random.integers(low, high, count, np.int64, endpoint=True)
        values = -np.maximum(values, -high) if sign < 0 else values
        values[random.random(count) < zeros] = 0
        values[0], values[-1] = (-high - 1, high) if sign == 0 else (0, sign * high)
        typed = {"b": np.int16, "i": np.int32, "u": np.uint32, "q": np.int64}[dtype]
        fits = np.iinfo(typed).min <= values.min() and values.max() <= np.iinfo(typed).max
        held = np.zeros(count * stride, typed if fits else np.int64)
        held[::stride] = values
        return held[::stride]

    return make


@needs_deserialize
@settings(max_examples=40, deadline=None)
@given(
    table=st.sampled_from((KERNEL, CALL, "CUPTI_ACTIVITY_KIND_MEMCPY")),
    data=st.data(),
    counts=st.lists(st.sampled_from((512, 513, 700, 2000, 9000)), min_size=1, max_size=3),
    big_pages=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
def test_both_ways_leave_the_same_rows(
    table: str, data: st.DataObject, counts: list[int], big_pages: bool, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    names, required = columns_of(table)
    folder, random = tmp_path_factory.mktemp("both"), np.random.default_rng(seed)
    blocks = []
    for count in counts:
        bound, fixed, nullable = {}, {}, 0
        zero_is_null = set()
        for name in names:
            what = data.draw(st.sampled_from(("varies", "varies", "fixed", "left out", "nullable")))
            if what == "nullable" and name not in required and nullable < cells.MOST_NULLABLE:
                nullable += 1
                zero_is_null.add(name)
            elif what == "left out" and name not in required:
                continue
            if what == "fixed":
                fixed[name] = data.draw(st.sampled_from((0, 1, -1, 127, 128, 1 << 40, -(1 << 63))))
            else:
                bound[name] = data.draw(a_column())(random, count)
        bound.setdefault(names[0], np.arange(count))
        fixed.pop(names[0], None)
        blocks.append((table, bound, fixed, zero_is_null))
    with no_inserts():
        write(folder / "pages.sqlite", blocks, big_pages)
    with only_inserts():
        write(folder / "rows.sqlite", blocks, big_pages)
    assert content(folder / "pages.sqlite", table) == content(folder / "rows.sqlite", table)


def block(first: int, count: int) -> Columns:
    """Calls whose ``start`` numbers them."""
    ones = {name: np.ones(count, np.int64) for name in ("eventClass", "nameId", "returnValue")}
    start = np.arange(first, first + count)
    return {**ones, "start": start, "end": start + 3, "correlationId": start % 100}


def starts(file: Path) -> list[int]:
    return [row[1] for row in content(file, CALL)]


def test_few_rows_and_lists_keep_their_place_among_pages(tmp_path: Path) -> None:
    file, counts = tmp_path / "x.sqlite", (5, 3000, 5, 3000, 40)
    with database(file) as db:
        for many in (False, True):  # the second transaction finds rows in the table
            with db.transaction():
                db.require(CALL)
                for number, count in enumerate(counts):
                    columns = block(sum(counts) * many + sum(counts[:number]), count)
                    if number == 2:
                        columns = {name: values.tolist() for name, values in columns.items()}
                    db.insert_columns(CALL, columns, {}, count)
    assert starts(file) == list(range(2 * sum(counts)))


@needs_deserialize
def test_more_rows_than_the_images_of_a_transaction_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "PAGES", image.MOST_TABLES + 4)
    monkeypatch.setattr(transfer, "_MOST_IMAGES", 2)
    file, count = tmp_path / "x.sqlite", 20_000
    with database(file) as db:
        for begin in (0, 2 * count):
            with db.transaction():
                db.require(CALL)
                for first in (begin, begin + count):
                    db.insert_columns(CALL, block(first, count), {}, count)
        attached = db.sql.execute("PRAGMA database_list").fetchall()
        assert [row[1] for row in attached] == ["main"], "their memory is given back"
    assert starts(file) == list(range(4 * count))


@needs_deserialize
@settings(max_examples=40, deadline=None)
@given(
    transactions=st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.booleans(), st.sampled_from((1, 40, 600, 2500)), st.booleans()),
                min_size=1, max_size=8,
            ),
            st.sampled_from(("committed", "committed", "taken back")),
        ),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_any_order_of_tables_and_ends_leaves_the_rows_of_inserts(
    transactions: list[tuple[list[tuple[bool, int, bool]], str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Images of a few pages, so that most calls fill one."""
    folder, sync = tmp_path_factory.mktemp("order"), "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"

    def record(file: Path) -> list[list[tuple[Any, ...]]]:
        with database(file) as db:
            number = 0
            for calls, end in transactions:
                with suppress(InterruptedError), db.transaction():
                    for table, count, as_list in calls:
                        columns = block(number, count)
                        if table:
                            columns = dict.fromkeys(columns_of(sync)[1], columns["start"])
                        if as_list:
                            columns = {name: values.tolist() for name, values in columns.items()}
                        number += count
                        db.require(sync if table else CALL)
                        db.insert_columns(sync if table else CALL, columns, {}, count)
                    if end == "taken back":
                        raise InterruptedError
            with db.transaction():
                db.require(sync)
                db.require(CALL)
        return [content(file, sync), content(file, CALL)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "PAGES", image.MOST_TABLES + 6)
        patch.setattr(transfer, "_MOST_IMAGES", 3)
        pages = record(folder / "pages.sqlite")
    with only_inserts():
        assert pages == record(folder / "rows.sqlite")


def test_values_that_are_none_of_sqlites_are_refused_as_ever(tmp_path: Path) -> None:
    good = block(0, 600)
    for wrong, error in (
        ({"nameId": np.full(600, 1 << 63, np.uint64)}, OverflowError),
        ({"nameId": np.arange(600)}, sqlite3.IntegrityError),  # NULL where it must not be
    ):
        with database(tmp_path / "x.sqlite") as db:
            with pytest.raises(error), db.transaction():
                db.require(CALL)
                db.insert_columns(CALL, good | wrong, {}, 600, {"nameId"})
            with db.transaction():
                db.require(CALL)
                db.insert_columns(CALL, good | {"callchainId": np.arange(600) / 4}, {}, 600)
        found = content(tmp_path / "x.sqlite", CALL)
        assert [row[-1] for row in found[:5]] == [0, 0.25, 0.5, 0.75, 1]


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with database(file) as db:
        with db.transaction():
            db.require(CALL)
            db.insert_columns(CALL, block(0, 1000), {}, 1000)
        with pytest.raises(KeyboardInterrupt), db.transaction():
            for first in range(0, 300_000, 60_000):  # more than an image
                db.insert_columns(CALL, block(first, 60_000), {}, 60_000)
            raise KeyboardInterrupt
        with db.transaction():
            db.insert_columns(CALL, block(1000, 1000), {}, 1000)
    assert starts(file) == list(range(2000))


def test_which_tables_take_pages() -> None:
    taken = {t for t in get_args(BulkTable) if transfer.definition_of(statements()[t][0])}
    if hasattr(sqlite3.Connection, "deserialize"):
        # The others have a key: SQLite has to look at each row.
        assert set(get_args(BulkTable)) - taken == {"COMPOSITE_EVENTS", "SAMPLING_CALLCHAINS"}
    else:
        assert not taken
    for sql in (
        "CREATE TABLE t (a INTEGER UNIQUE)",
        "CREATE TABLE t (a INTEGER) WITHOUT ROWID",
        f"CREATE TABLE t ({', '.join(f'c{n} INTEGER' for n in range(70))})",
        "CREATE TABLE t (",
    ):
        assert transfer.definition_of(sql) is None


KILLED = """
    import sys
    import numpy as np
    from test_pages import CALL, block, database
    from pathlib import Path
    with database(Path(sys.argv[1])) as db:
        with db.transaction():
            db.require(CALL)
            db.insert_columns(CALL, block(0, 1000), {}, 1000)
        with db.transaction():
            for first in range(0, 600_000, 60_000):
                db.insert_columns(CALL, block(first, 60_000), {}, 60_000)
            db.sql.execute("SELECT 1")  # two images are written, one waits
            print("in the middle", flush=True)
            sys.stdin.read()
"""


@needs_deserialize
def test_kill_in_a_big_transaction(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(file)],
        env={**os.environ, "PYTHONPATH": HERE}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    assert file.stat().st_size > 5_000_000, "pages had reached the file"
    assert starts(file) == list(range(1000))
    assert list(tmp_path.iterdir()) == [file], "nothing is left behind"


@needs_deserialize
def test_a_limit_on_the_file_is_said_and_what_was_written_stays(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from test_pages import CALL, RunFileWriter, block, sample_info
        from llmprof.errors import RunFileError
        with RunFileWriter(Path(sys.argv[1]), sample_info()) as run:
            shift = run.t0_ns
            def put(count):
                columns = block(0, count)
                run.bulk(CALL, columns | {n: columns[n] + shift for n in ("start", "end")})
            put(1000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
            try:
                put(400_000)
            except RunFileError as why:
                print(why)
            put(1000)
    """
    file = tmp_path / "x.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(file)],
        env={**os.environ, "PYTHONPATH": HERE}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "has reached the limit on file sizes of 4.00 MB" in done.stdout
    assert len(starts(file)) == 2000


@needs_deserialize
@pytest.mark.parametrize("then", ["bulk", "another call", "nothing"])
def test_a_thread_that_fails_takes_back_the_batch(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is called next: nothing must reach the file outside of the batch's transaction."""

    def full(sql: sqlite3.Connection, *_: Any) -> None:
        sql.execute("ROLLBACK")  # as SQLite does by itself
        raise sqlite3.OperationalError("database or disk is full")

    columns = block(0, 60_000)
    with RunFileWriter(tmp_path / "x.sqlite", sample_info()) as run:
        columns |= {name: columns[name] + run.t0_ns for name in ("start", "end")}
        run.put_missing([Missing("run", "gpm", "kept")])
        monkeypatch.setattr(image, "PAGES", 50)  # a third of the columns
        with monkeypatch.context() as patch:
            patch.setattr(transfer, "_write", full)
            with pytest.raises(RunFileError), run.batch():
                run.bulk(CALL, columns)
                if then == "bulk":
                    run.bulk(CALL, columns)
                elif then == "another call":
                    run.put_missing([Missing("run", "gpm", "lost")])
        run.bulk(CALL, columns)
    assert starts(run.path) == list(range(60_000))
    assert [row[-1] for row in content(run.path, "LLMPROF_MISSING")] == ["kept"]


def test_the_writer_and_a_failed_batch(tmp_path: Path) -> None:
    """A round's columns, as ``bulk`` gets them, are there after the call."""
    columns = block(0, 2000)
    with RunFileWriter(tmp_path / "x.sqlite", sample_info()) as run:
        columns |= {name: columns[name] + run.t0_ns for name in ("start", "end")}
        run.bulk(CALL, columns)
        assert starts(run.path) == list(range(2000))
        with pytest.raises(RunFileError), run.batch():
            run.bulk(CALL, columns)
            raise RunFileError("the disk")
        assert len(starts(run.path)) == 2000
