"""The folder of a sweep: what survives a kill, a torn line, another sweep, a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sweep_factory import grid, made_store, row

from llmprof.errors import LlmprofError, RunFileError, UsageError
from llmprof.runfile.reader import RunFileReader
from llmprof.sweep import columns
from llmprof.sweep.run import sweep
from llmprof.sweep.store import Ended, Store


def test_what_has_ended_is_known_to_the_next_one(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", grid())
    first, second = store.points[:2]
    with store.writing():
        store.put(Ended(first.point_id, "done", "", [row(first, "e0")]))
        store.put(Ended(second.point_id, "failed", "crash"))
    again = Store.create(tmp_path / "s", grid())
    assert again.left() == again.points[2:]
    assert again.left(retry_failed=True) == again.points[1:]
    with again.writing():
        again.put(Ended(second.point_id, "done", "", [row(second, "e0")]))
    assert Store.open(tmp_path / "s").ended[second.point_id].state == "done"
    assert [r["state"] for r in again.rows()] == ["done", "done"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_line_is_a_point_that_did_not_end(tmp_path: Path, cut: int) -> None:
    store = made_store(tmp_path / "s")
    journal = tmp_path / "s" / "points.jsonl"
    os.truncate(journal, journal.stat().st_size - cut)
    again = Store.create(tmp_path / "s", grid())
    assert again.left() == [store.points[-1]]
    with again.writing():
        again.put(Ended(store.points[-1].point_id, "done", "", [row(store.points[-1], "e0")]))
    last = Store.open(tmp_path / "s")
    assert not last.left()
    assert len(last.ended) == len(last.points)


def test_half_done_work_is_removed_and_nobody_else_writes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", grid())
    (tmp_path / "s" / "work" / "dead").mkdir()
    with store.writing():
        assert not list((tmp_path / "s" / "work").iterdir())
        with pytest.raises(LlmprofError, match="another llmprof"), store.writing():
            pass


def test_a_sweep_that_is_named_as_a_run_says_what_it_is(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", grid())
    with pytest.raises(RunFileError, match="a sweep, not a run: llmprof open shows it alone"):
        RunFileReader(tmp_path / "s")


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    made_store(tmp_path / "s")
    with pytest.raises(UsageError, match=r"holds another sweep .*context 128"):
        Store.create(tmp_path / "s", grid(contexts="64"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is no sweep"):
        Store.create(tmp_path / "full", grid())
    with pytest.raises(UsageError, match="no sweep here"):
        Store.open(tmp_path / "full")
    (tmp_path / "s" / "sweep.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        Store.open(tmp_path / "s")


def test_a_full_disk_leaves_whole_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk takes the first part of a line and then says that it is full."""
    store = Store.create(tmp_path / "s", grid())
    write, calls = os.write, []

    def little(number: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, bytes(data)[:20])

    with store.writing():
        point = store.points[0]
        monkeypatch.setattr(os, "write", little)
        with pytest.raises(OSError, match="No space"):
            store.put(Ended(point.point_id, "done", "", [row(point, "e0")]))
        monkeypatch.undo()
        store.put(Ended(point.point_id, "done", "", [row(point, "e0")]))
    assert list(Store.open(tmp_path / "s").ended) == [point.point_id]


def test_a_point_that_failed_on_a_full_disk_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        words = "a full disk"

        def run(self, points, store, tell, stop):
            yield Ended(points[0].point_id, "failed", "disk full")

    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    store = Store.create(tmp_path / "s", grid())
    with pytest.raises(LlmprofError, match="disk is full"):
        sweep(store, Full(), [], tell=print, stop=lambda: False)  # type: ignore[arg-type]
    assert Store.open(tmp_path / "s").left() == store.points


def test_parquet_has_every_column_with_its_type(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    store = made_store(tmp_path / "s")
    columns.write(store.rows(), tmp_path / "s" / "points.parquet")
    table = parquet.read_table(tmp_path / "s" / "points.parquet")
    assert table.num_rows == 24
    found = table.to_pylist()[0]
    assert dict(found["fields"]) == {"context": "128", "batch": "1"}
    assert dict(found["categories"])["norm"] == 0.5
    assert found["measured_gb_s"] is None
    assert str(table.schema.field("step_ms").type) == "double"
    assert found["driver"] == "580.1"
