"""Columns as a database in memory: a sound one, as full as it may be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmprof.runfile.pages import cells, image
from llmprof.runfile.pages.image import PAGE, PAGES, Image

needs_deserialize = pytest.mark.skipif(
    not hasattr(sqlite3.Connection, "deserialize"), reason="Python 3.10 cannot open it"
)


@needs_deserialize
@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(1, 60_000), min_size=1, max_size=3),
    nulls=st.sampled_from((0.0, 0.01, 0.5, 1.0)),
    bits=st.sampled_from((1, 20, 63)),
)
@example(rows=[60_000, 60_000, 60_000], nulls=0.5, bits=63)  # as full as it gets
def test_an_image_is_a_sound_database(rows: list[int], nulls: float, bits: int) -> None:
    """Of one page, of many below an inner page, and of rows of several lengths."""
    made, random = Image(), np.random.default_rng(0)
    wanted: list[tuple[Any, ...]] = []
    sql = "CREATE TABLE t (a INTEGER, b INTEGER NOT NULL, c INTEGER, d INTEGER)"
    for count in rows:
        a = random.integers(0, 1 << bits, count)
        a[random.random(count) < nulls] = 0
        b = np.arange(count) - 7
        block = [
            cells.varying(a, zero_is_null=True),
            cells.varying(b),
            cells.ALL_NULL,
            cells.constant(-300),
        ]
        taken = made.add("t", sql, block, 0, count)
        pairs = zip(a[:taken].tolist(), b[:taken].tolist(), strict=True)
        wanted += [(x or None, y, None, -300) for x, y in pairs]
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(made.database())
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT * FROM t").fetchall() == wanted
        # By their keys too, through the inner page.
        found = db.execute("SELECT rowid FROM t").fetchall()
        assert [row for (row,) in found] == [cells.rowid_of(n) for n in range(len(wanted))]
        for number in (0, len(wanted) // 2, len(wanted) - 1):
            by_key = db.execute("SELECT * FROM t WHERE rowid = ?", (cells.rowid_of(number),))
            assert by_key.fetchone() == wanted[number]


def test_an_image_takes_what_it_has_room_for() -> None:
    values = [cells.varying(np.arange(10_000) + (1 << 40))]
    made, added = Image(), {}
    for table in ("t", "u", "v"):
        sql = f"CREATE TABLE {table} (a INTEGER)"
        added[table] = 0
        while taken := made.add(table, sql, values, 0, 10_000):
            added[table] += taken
    assert added["t"] == cells.MOST_ROWS and 0 < added["u"] < cells.MOST_ROWS and not added["v"]
    assert made.tables == ["t", "u"]
    assert 0.98 * PAGES * PAGE < len(made.database()) <= PAGES * PAGE
    made.clear()
    assert made.tables == [] and made.add("t", "CREATE TABLE t (a)", values, 0, 10) == 10


@needs_deserialize
def test_more_tables_than_an_image_holds() -> None:
    made, values = Image(), [cells.varying(np.arange(600))]
    taken = [
        made.add(f"t{n}", f"CREATE TABLE t{n} (a INTEGER)", values, 0, 600)
        for n in range(image.MOST_TABLES + 1)
    ]
    assert taken == [600] * image.MOST_TABLES + [0]
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(made.database())
        assert db.execute("SELECT count(*), sum(a) FROM t7").fetchone() == (600, 599 * 300)
