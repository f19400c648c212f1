"""Curves and fits of made points whose truth is known; reports of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from sweep_factory import A_MS, KV_BYTES, NS_A_POSITION, WEIGHTS, grid, made_store, row

from llmprof.errors import UsageError
from llmprof.records import Unavailable
from llmprof.sweep.curves import IDLE, chosen_axis, curves, doubts
from llmprof.sweep.fits import bytes_line, context_fit, fit_words, knee_of
from llmprof.sweep.report.content import content
from llmprof.sweep.report.formats import write
from llmprof.sweep.rows import rows_of

AXES = ("context", "batch")


def test_a_curve_is_an_engine_with_all_else_held(tmp_path: Path) -> None:
    rows = made_store(tmp_path / "s").rows()
    found = curves(rows, AXES, "context")
    assert [c.label for c in found] == [f"e{e} · batch {b}" for e in (0, 1) for b in (1, 2, 4)]
    assert [p.shown for p in found[0].places] == ["128", "1k", "4k", "8k"]
    assert found[0].places[0].categories()[IDLE] == 0.5
    assert curves(rows, AXES, "batch")[0].label == "e0 · context 128"


def test_points_of_different_gpus_are_never_one_curve(tmp_path: Path) -> None:
    store = made_store(
        tmp_path / "s", gpu_of=lambda p: "H200" if p.fields["context"] == "8192" else "H100"
    )
    found = curves(store.rows(), AXES, "context")
    kinds = {c.hardware: [p.shown for p in c.places] for c in found}
    assert kinds == {"H100": ["128", "1k", "4k"], "H200": ["8k"]}
    assert "2 kinds of hardware (H100, H200)" in doubts(found)[0]


def test_the_fit_finds_the_planted_line(tmp_path: Path) -> None:
    for curve in curves(made_store(tmp_path / "s").rows(), AXES, "context")[:3]:
        batch = int(curve.held["batch"])
        fit = context_fit(curve)
        assert not isinstance(fit, Unavailable)
        assert fit.line.a == pytest.approx(A_MS)
        assert fit.line.b == pytest.approx(NS_A_POSITION * batch / 1e6)
        assert fit.line.worst < 1e-9
        assert fit.model_bytes_per_position == KV_BYTES
        assert fit.fitted_bytes_per_position == pytest.approx(NS_A_POSITION / 1e6 / A_MS * WEIGHTS)
        assert fit.attention_gb_s == pytest.approx(KV_BYTES / NS_A_POSITION)


def test_the_measured_bytes_are_the_slope_of_what_dram_moved(tmp_path: Path) -> None:
    points = grid(batches="2", engines=1).points()
    rows = []
    for point in points:
        made = row(point, "e0")
        moved = WEIGHTS + 2 * 600_000 * (made["prompt_len"] + 32.5)
        made["measured_gb_s"] = moved / 1e9 / (made["step_ms"] / 1e3)
        rows.append({**made, "fields": dict(point.fields)})
    (curve,) = curves(rows, ("context",), "context")
    fit = context_fit(curve)
    assert not isinstance(fit, Unavailable)
    assert fit.measured_bytes_per_position == pytest.approx(600_000)


def test_repeats_are_one_place_between_their_bounds() -> None:
    point = grid(engines=1).points()[0]
    rows = [
        {**row(point, "e0", factor=f), "fields": dict(point.fields), "repeat": n}
        for n, f in enumerate((1.0, 1.2, 1.1))
    ]
    (place,) = curves(rows, AXES, "context")[0].places
    assert place.value("step_ms") == pytest.approx(rows[2]["step_ms"])
    assert place.interval("step_ms") == (rows[0]["step_ms_low"], rows[1]["step_ms_high"])


def test_a_knee_is_where_a_sequence_loses_a_fifth(tmp_path: Path) -> None:
    found = curves(made_store(tmp_path / "s").rows(), AXES, "batch")
    knees = {c.held["context"]: knee_of(c) for c in found if c.engine == "e0"}
    # 5 ms and 250 ns a position: at 8k, two sequences take 9.1 ms for 7.1 of one.
    assert knees["128"].batch == float("inf")
    assert knees["8192"].batch == 1
    assert "at 2 it has" in knees["8192"].words


def test_too_few_places_get_no_line() -> None:
    points = grid(contexts="128,256", batches="1", engines=1).points()
    rows = [{**row(p, "e0"), "fields": dict(p.fields)} for p in points]
    found = curves(rows, ("context",), "context")
    assert isinstance(context_fit(found[0]), Unavailable)
    assert isinstance(bytes_line(found), Unavailable)
    assert "needs 3 places" in fit_words(found, "context")[0]


def test_noise_is_not_read_as_bytes() -> None:
    points = grid(batches="1", engines=1).points()
    noise = (174.3, 232.0, 170.3, 171.0)
    rows = [
        {**row(p, "e0"), "step_ms": ms, "fields": dict(p.fields)}
        for p, ms in zip(points, noise, strict=True)
    ]
    found = curves(rows, ("context",), "context")
    fit = context_fit(found[0])
    assert not isinstance(fit, Unavailable)
    assert isinstance(fit.fitted_bytes_per_position, Unavailable)
    words = fit_words(found, "context")
    assert "not seen to grow with the context" in words[0] and "KV bytes" not in words[0]
    assert "do not explain the step" in words[1]


def test_an_axis_that_does_not_vary_is_refused() -> None:
    assert chosen_axis(("batch", "context"), "") == "context"
    with pytest.raises(UsageError, match="axes: batch"):
        chosen_axis(("batch",), "seed")


def test_the_csv_has_every_row_and_no_formula(tmp_path: Path) -> None:
    store = made_store(tmp_path / "s")
    store.ended[store.points[0].point_id].rows[0]["engine"] = "=cmd()|x"
    write(store, "csv", tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(rows) == 24
    assert rows[0]["engine"] == "'=cmd()|x"
    assert rows[0]["measured_gb_s"] == ""
    assert float(rows[0]["category:norm (ms)"]) == 0.5
    with pytest.raises(UsageError, match="exists already"):
        write(store, "csv", tmp_path / "out.csv")


def test_pictures_and_page_are_whole_and_safe(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store = made_store(tmp_path / "s")
    store.ended[store.points[0].point_id].rows[1]["engine"] = "<script>x</script>\x1b[2J $\\frac{$"
    for to in ("png", "html"):
        write(store, to, tmp_path / "s" / f"report.{to}")
    png = (tmp_path / "s" / "report.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "s" / "report.html").read_text()
    assert "<svg" in page and "attention" in page
    assert "<script" not in page and "\x1b" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "").replace(
        "http://purl.org/", ""
    ).replace("http://creativecommons.org/", "")
    assert "KV bytes a token: model 524,288" in page


def test_the_report_of_nothing_says_so(tmp_path: Path) -> None:
    from llmprof.sweep.store import Store

    with pytest.raises(UsageError, match="no point has ended"):
        content(Store.create(tmp_path / "s", grid()))


def test_a_row_is_the_document_in_columns() -> None:
    """From a real run of the H100 that the tests carry."""
    from llmprof.analysis.view.opening import open_run
    from llmprof.analysis.view.report import build
    from llmprof.analysis.view.traced import load_trace
    from llmprof.exports.json.report import to_document
    from llmprof.records.steps import AUTO_STEPS

    file = Path(__file__).parent.parent / "fixtures" / "h100_graph.sqlite"
    data = open_run(file, AUTO_STEPS)
    report = build(data)
    document = to_document(report, data, load_trace(report, data))
    found = rows_of(document)
    assert [r["engine"] for r in found] == [e["label"] for e in document["engines"]]
    for made, engine in zip(found, document["engines"], strict=True):
        assert made["tok_s"] == engine["tok_s"]["median"]
        assert made["step_ms"] == pytest.approx(made["batch"] * 1000 / made["tok_s"])
        assert "H100" in made["gpu"] and made["driver"]
        assert sum(made["categories"].values()) > 0
        for name, why in made["reasons"].items():
            assert why and made.get(name) in (None, {})
