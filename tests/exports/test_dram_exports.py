"""Measured DRAM bandwidth of kernels in every output, from one run file."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from dram_factory import EVEN, NORM, READ_FIRST, SHORT, SPIN_FIRST, dram_run, strobe

from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.traced import RunTrace
from llmprof.cli import main
from llmprof.exports.json.schema import text as schema_text
from llmprof.runfile.reader import RunFileReader
from llmprof.tui.drawing.cells import Row, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.memory import page as memory_page
from llmprof.tui.timeline import page as timeline_page
from llmprof.tui.view import Selected, TimelineView, View

GEMVS = [replace(kind, name=f"gemv_{kind.name}") for kind in (READ_FIRST, SPIN_FIRST, EVEN)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dram") / "run.sqlite"
    dram_run(path, strobe((NORM, GEMVS[2], SHORT, GEMVS[0], NORM, GEMVS[1]), steps=120))
    return path


def text_of(rows: list[Row]) -> str:
    return "\n".join("".join(span.text for span in line) for line in rows)


def test_json_is_valid_and_has_the_bytes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from", str(run), "--headless", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(schema_text()))
    found = document["engines"][0]["tracing"]["dram_per_kernel"]
    kernels = {k["short_name"]: k for k in found["kernels"]}
    for kind in GEMVS:
        kernel = kernels[kind.name.partition("(")[0]]
        assert kernel["mb_per_launch"] == pytest.approx(kind.mb, rel=0.02)
        assert kernel["low_mb"] <= kernel["mb_per_launch"] <= kernel["high_mb"]
    assert "of what a copy reaches; at 95% a step would be" in found["headroom"]["words"]
    counters = {c["name"]: c["counted"] for c in found["counters"]}
    assert counters == {
        "dram_read_pct": True, "sm_active_pct": True, "dram_write_pct": True,
        "l2_pct": False, "l2_hit_pct": False, "tensor_pct": False,
    }  # fmt: skip


def test_tables(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, name in (("csv", "tables"), ("markdown", "run.md"), ("html", "run.html")):
        assert main(["export", str(run), "--to", form, "-o", str(tmp_path / name)]) == 0
    with (tmp_path / "tables" / "kernel_dram.csv").open(encoding="utf-8") as file:
        rows = {row["short_name"]: row for row in csv.DictReader(file)}
    assert float(rows["gemv_even"]["mb_per_launch"]) == pytest.approx(EVEN.mb, rel=0.02)
    assert len(rows["gemv_read_then_spin"]["profile_gb_s"].split()) > 4
    markdown = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert "## DRAM by kernel of torch, measured" in markdown
    assert "A copy reaches 3010 GB/s, the specification says 3352." in markdown
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "dram_per_kernel" in html
    capsys.readouterr()
    assert main(["--from", str(run), "--headless"]) == 0
    assert "DRAM by kernel of torch, measured" in capsys.readouterr().out


def test_page_and_timeline(run: Path) -> None:
    with RunFileReader(run) as reader:
        data = reader.run_data()
    trace = RunTrace(run, data)
    assert isinstance(trace.engines[0].dram, KernelBandwidth)
    snapshot = RunDataSource(data).snapshot()
    for glyphs in (UNICODE, ASCII):
        for width, height in ((40, 20), (80, 22), (120, 38), (200, 60)):
            rows = memory_page.page(
                snapshot, View(glyphs, page="memory", trace=trace), width, height
            )
            text = text_of(rows)
            assert all(width_of(line) <= width for line in rows)
            assert "GEMVs run at" in text
            assert "gemv_read" in text
            if glyphs is ASCII:
                assert not set(text) & set(UNICODE.bars[1:])
    key = ("traced", 0)
    engine = trace.engines[0]
    read_first = next(
        i for i, n in enumerate(engine.kernel_rows.name_id)
        if "read_then" in engine.kernel_rows.names[int(n)]
    )  # fmt: skip
    view = View(
        UNICODE, page="timeline", trace=trace,
        timeline=TimelineView(key=key, selected=Selected(key, 1, item=read_first)),
    )  # fmt: skip
    text = text_of(timeline_page.page(snapshot, view, 120, 38))
    assert "DRAM GB/s" in text
    assert "of a copy" in text
    assert "MB a launch" in text
    # Within the kernel: its first half reads, its second does not.
    start = int(engine.kernel_rows.start_ns[read_first])
    end = int(engine.kernel_rows.end_ns[read_first])
    (series,) = trace.lanes.lanes[0].samples[key]
    early, late = series.at(start + (end - start) // 5), series.at(end - (end - start) // 5)
    assert early is not None
    assert late is not None
    assert early > 2300
    assert late < 150


def test_without_samples_there_is_a_reason(run: Path, tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "none.sqlite"
    path.write_bytes(run.read_bytes())
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM LLMPROF_PM_SAMPLE")
        db.execute("DELETE FROM LLMPROF_PM_ROUND")
        db.execute(
            "INSERT INTO LLMPROF_MISSING (scope, name, reason) VALUES (?, ?, ?)",
            ("torch", "pm", "another profiler holds this GPU's performance counters"),
        )
    with RunFileReader(path) as reader:
        data = reader.run_data()
    trace = RunTrace(path, data)
    view = View(UNICODE, page="memory", trace=trace)
    text = text_of(memory_page.page(RunDataSource(data).snapshot(), view, 100, 30))
    assert "another profiler holds" in text
