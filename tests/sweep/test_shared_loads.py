"""Points that share a load: the same results, a fresh one where it fails, and the order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import small_models

from llmprof.runfile.reader import RunFileReader
from llmprof.sweep.grid import make
from llmprof.sweep.loads import Todo, loads
from llmprof.sweep.store import Store

pytest.importorskip("pyarrow")
SHORT = ["--rounds", "2", "--decode-len", "6"]


def tokens(store: Store) -> dict[tuple[str, str, str], set[str]]:
    """(context, batch, engine) → what its rounds decoded: one text, if all agree."""
    found = {}
    for point in store.points:
        path = store.run_file(point)
        assert path is not None, store.ended
        with RunFileReader(path) as reader:
            data = reader.run_data()
        for engine in data.engines:
            rounds = [r for r in data.rounds if r.engine_id == engine.engine_id]
            assert all(r.complete for r in rounds)
            key = (point.fields["context"], point.fields["batch"], engine.label)
            found[key] = {str([row[:4] for row in r.tokens]) for r in rounds}
    return found


def test_a_shared_load_gives_what_a_fresh_one_gives(llmprof, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("cyllama")
    model = small_models.write_gguf(tmp_path / "small.gguf", small_models.weights())
    asked = [
        "--engine", "torch", "--engine", "llamacpp:drive=forward,binding=cyllama",
        "--model", str(model), "--context", "9,300", "--batch", "1,3", *SHORT,
    ]  # fmt: skip
    for kind, steps in (("shared", "4"), ("fresh", "0")):
        done = llmprof(
            "sweep", *asked, "--traced-steps", steps, "--loads", kind, "-o", kind, timeout=600
        )
        assert done.returncode == 0, done.stderr
    shared, fresh = Store.open(tmp_path / "shared"), Store.open(tmp_path / "fresh")
    assert [row["load"] for row in shared.rows()] == ["own"] * 2 + ["shared"] * 6
    assert {row["load"] for row in fresh.rows()} == {"own"}
    decoded = tokens(shared)
    assert decoded == tokens(fresh)
    assert {len(texts) for texts in decoded.values()} == {1}
    for one, other in zip(shared.rows(), fresh.rows(), strict=True):
        for name in ("kv_bytes_per_token", "bytes_per_step", "weight_bytes_per_step", "options",
                     "versions", "rounds", "batch", "prompt_len"):  # fmt: skip
            assert one[name] == other[name]
    row = shared.rows()[2]
    assert row["load_s"] is None and "loaded once for several points" in row["reasons"]["load_s"]
    assert shared.rows()[4]["traced_step_ms"] > 0


def test_an_engine_that_cannot_is_loaded_for_each_and_says_why(llmprof, tmp_path: Path) -> None:
    asked = ["--engine", "fake:fixed=1", "--context", "8,24", *SHORT, "-o", "s"]
    assert llmprof("sweep", *asked).returncode == 0
    first, second = Store.open(tmp_path / "s").rows()
    assert first["load"] == second["load"] == "own"
    assert second["load_s"] > 0
    assert second["load_note"] == "loaded for every point: fake:fixed=1 keeps its shape"


def test_a_point_that_fails_on_a_shared_load_runs_on_a_fresh_one(llmprof, tmp_path: Path) -> None:
    asked = ["--engine", "fake:dies_reshaped=1", "--context", "8,24", *SHORT, "-o", "s"]
    done = llmprof("sweep", *asked, "--vary", "traced-steps=0")
    assert done.returncode == 0, done.stderr
    rows = Store.open(tmp_path / "s").rows()
    assert [(row["state"], row["load"]) for row in rows] == [("done", "own")] * 2


def test_repeats_and_other_weights_share_nothing() -> None:
    grid = make(["fake"], {"context": "8,16", "seed": "1,2", "fake.step_us": "5,6"}, 2)
    points = grid.points()
    by_id = loads(points)
    assert len({load.key for load in by_id.values()}) == 2 * 2 * 2
    assert {load.most_positions for load in by_id.values()} == {16 + 64 + 1}
    todo = Todo(points, by_id)
    order = [todo.take("")]
    while (point := todo.take(by_id[order[-1].point_id].key)) is not None:
        order.append(point)
    keys = [by_id[point.point_id].key for point in order]
    assert sum(a != b for a, b in pairwise(keys)) == 7
    assert [point.repeat for point in order] == [0] * 8 + [1] * 8
    assert not len(todo)
    todo.put_back(order[3])
    assert todo.take("") is order[3]
