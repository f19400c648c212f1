"""What a report says of what is not there: each n/a has its reason, each failed point its own."""

from __future__ import annotations

from pathlib import Path

from sweep_factory import grid, made_store, row

from llmprof.sweep.curves import curves, doubts
from llmprof.sweep.fields import short
from llmprof.sweep.fits import fit_words
from llmprof.sweep.grid import make
from llmprof.sweep.report.content import content
from llmprof.sweep.report.gaps import CATEGORIES, failed_points, why_missing
from llmprof.sweep.report.page import html_text
from llmprof.sweep.report.tables import markdown
from llmprof.sweep.store import Ended, Store


def rows_of(of=None, **changed: object) -> list[dict]:
    return [
        {**row(point, name, **changed), "fields": dict(point.fields), "repeat": 0}
        for point in (of or grid()).points()
        for name in ("a", "b")
    ]


def test_an_unknown_interval_is_na_with_its_reason() -> None:
    rows = rows_of(grid("128,1k,4k", "1,2"))
    for one in rows[:4]:
        why = "1 round: an interval needs at least 5"
        one["reasons"] = {"step_ms_low": why, "tok_s_low": why}
        for name in ("step_ms", "tok_s"):
            one[f"{name}_low"] = one[f"{name}_high"] = None
    found = curves(rows, ("context", "batch"), "context")
    (text,) = why_missing(found, ["step_ms", "tok_s"])
    assert text == (
        "interval of step, ms; interval of tok/s, all sequences: n/a at a · batch 1 128;"
        " a · batch 2 128; b · batch 1 128; b · batch 2 128: 1 round: an interval needs at least 5"
    )
    for one in rows:
        one["categories"], one["reasons"] = {}, {CATEGORIES: "no traced pass: the time was up"}
    (text,) = why_missing(found, [CATEGORIES])
    assert text == "categories: n/a at every place: no traced pass: the time was up"
    rows[0]["reasons"] = {}
    assert "no reason is kept" in " ".join(why_missing(found, [CATEGORIES]))


def test_what_held_the_clocks_down_is_named_with_its_share() -> None:
    rows = rows_of(grid("128,1k", "1"))
    rows[0]["throttle"] = "power cap 33%, thermal 5%"
    rows[2]["throttle"] = "power cap 71%"
    assert doubts(curves(rows, ("context", "batch"), "context")) == [
        "a · batch 1: power cap held the clocks down at 128 (33%), 1k (71%) of the samples",
        "a · batch 1: thermal held the clocks down at 128 (5%) of the samples",
    ]
    many = rows_of(grid(",".join(str(n) for n in range(1, 21)), "1"), throttle="power cap 9%")
    assert doubts(curves(many, ("context", "batch"), "context"))[0].endswith(
        "8 (9%), and 12 more places of the samples"
    )


def test_a_trace_that_is_much_slower_than_what_is_timed_is_a_doubt() -> None:
    rows = rows_of(grid("128,1k", "1"), slowdown=1.2)
    assert doubts(curves(rows, ("context", "batch"), "context")) == []
    rows[2]["slowdown"] = 3.227
    (text,) = doubts(curves(rows, ("context", "batch"), "context"))
    assert text.startswith(
        "a · batch 1: traced steps took much longer than timed ones at 1k (3.23×)"
    )


def test_curves_come_by_what_is_held_and_not_by_the_order_of_the_grid() -> None:
    found = curves(rows_of(grid("128,1k", "1,16,8,2")), ("context", "batch"), "context")
    assert [c.held["batch"] for c in found if c.engine == "a"] == ["1", "2", "8", "16"]
    assert [c.engine for c in found] == ["a"] * 4 + ["b"] * 4
    held = make(["fake"], {"context": "128,1k", "fake.how": "z,a"})
    found = curves(rows_of(held), ("context", "fake.how"), "context")
    assert [c.held["fake.how"] for c in found if c.engine == "a"] == ["z", "a"]


def test_what_all_engines_of_a_point_say_is_said_once() -> None:
    rows = rows_of(grid("128,1k", "1,8"))
    for one in rows[-2:]:
        one.update(state="impossible", reason="torch: needs 91 GiB")
    rows[0].update(state="failed", reason="died")
    assert [point.words for point in failed_points(rows, ("context", "batch"), 1)] == [
        "context 128 · batch 1: a: failed: died",
        "context 1k · batch 8: impossible: torch: needs 91 GiB",
    ]
    (first, _) = failed_points(rows, ("context", "batch"), 3)
    assert first.point == "context 128 · batch 1 · repeat 1"


def test_a_slope_has_no_exponent_and_its_bounds_their_own_sign() -> None:
    rows = rows_of(grid("128,1k,4k,16k", "1"))
    for number, one in enumerate(rows):
        step = (56.4, 5.0, 50.2, 9.1, 49.3, 11.2, 46.4, 27.3)[number]
        one["step_ms"] = step
    texts = fit_words(curves(rows, ("context", "batch"), "context"), "context")
    assert "ms − 433 (slope −1,515 to 649) ns" in texts[0]
    assert "+ 1,292 (799 to 1,784) ns" in texts[1]


def test_a_config_is_called_by_its_folder() -> None:
    assert short("model", "/models/llama2-7b-32k/config.json") == "llama2-7b-32k"
    assert short("model", "/models/smol.gguf") == "smol.gguf"
    assert short("model", "config.json") == "config.json"
    assert short("model", "4096") == "4096"


def test_the_report_says_all_of_it_once(tmp_path: Path) -> None:
    store: Store = made_store(tmp_path / "sweep", grid("128,1k,4k", "1,2"))
    point = store.points[-1]
    bad = [
        {**row(point, f"e{i}"), "state": "impossible", "reason": "torch: needs 91 GiB"}
        for i in range(2)
    ]
    with store.writing():
        store.put(Ended(point.point_id, "impossible", "torch: needs 91 GiB", bad, 0.0, "", ""))
    shown = content(store)
    for text in (markdown(shown), html_text(shown)):
        assert "nan" not in text and text.count("needs 91 GiB") == 1
        assert "What is n/a" in text and "GB/s, measured" in text
        assert "step, ms" in text and "step_ms" not in text


def test_a_category_that_took_no_time_is_none_and_not_unknown(tmp_path: Path) -> None:
    store = made_store(tmp_path / "sweep", grid("128,1k", "1"))
    with store.writing():
        point = store.points[0]
        rows = [row(point, f"e{i}", categories={"GEMM/GEMV": 4.0}) for i in range(2)]
        store.put(Ended(point.point_id, "done", "", rows, 1.0, "n1", "runs/0.sqlite"))
    found = [x for x in markdown(content(store)).splitlines() if x.startswith("| attention |")]
    assert found and all(line.startswith("| attention | 0 (0%) |") for line in found)
