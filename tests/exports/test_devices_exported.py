"""An engine on two GPUs in every output: each device by itself, none merged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import pytest
from capture_factory import MS, PID, Capture

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.html.page import _timeline as html_timeline
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document
from llmprof.exports.text import csv_tables
from llmprof.exports.text.table import render
from llmprof.exports.timeline.tracks import Slice, events
from llmprof.records.steps import (
    AUTO_STEPS,
)
from llmprof.tui.drawing.cells import text_of
from llmprof.tui.drawing.glyphs import UNICODE
from llmprof.tui.timeline.page import layout
from llmprof.tui.view import View


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Layers split over two GPUs that take turns, on the same stream number."""
    path = tmp_path / "two.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu(0), made.gpu(1)
        for i in range(20):
            start = 100 * MS + i * 10 * MS
            made.range(start, start + 9_900_000, f"decode {i}")
            for device in (0, 1):
                at = start + 50_000 + device * 4_900_000
                launch = made.call(at - 40_000, at - 30_000)
                name = f"void layers{device}(float*)"
                made.kernel(at, at + 4_800_000, name, PID, device, launch)
    return path


def opened(path: Path) -> tuple[RunDataSource, RunTrace]:
    source = RunDataSource(open_run(path))
    trace = source.trace()
    assert isinstance(trace, RunTrace)
    return source, trace


def test_json_and_table_know_each_gpu(pipeline: Path) -> None:
    data = open_run(pipeline)
    trace = RunTrace(pipeline, data)
    document = to_document(build(data), data, trace)
    jsonschema.validate(document, json.loads(schema.text()))
    gpu = document["engines"][0]["tracing"]["gpu"]
    assert (gpu["device"], gpu["busy_ms_per_step"], gpu["idle_ms_per_step"]) == (0, 4.8, 5.2)
    found = [(d["device"], d["busy_ms_per_step"], d["idle_ms_per_step"]) for d in gpu["devices"]]
    assert found == [(0, 4.8, 5.2), (1, 4.8, 5.2)]
    text = render(build(data), 100, trace)
    assert "GPU 1" in text and text.count("4.800 ms") >= 3


def test_csv_html_and_timeline_files_keep_devices_apart(pipeline: Path, tmp_path: Path) -> None:
    csv_tables.write([pipeline], tmp_path / "tables", lambda *_: None, AUTO_STEPS)
    with (tmp_path / "tables" / "devices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["device"], r["busy_ns"], r["idle_ns"]) for r in rows] == [
        ("0", "96000000", "104000000"),
        ("1", "96000000", "104000000"),
    ]
    _, trace = opened(pipeline)
    page = html_timeline(trace.engines[0])
    assert page is not None
    assert {row[4] for row in page["rows"]} == {"GPU 0: 7", "GPU 1: 7"}
    data = open_run(pipeline)
    tracks = {
        (e.track.name, e.name)
        for e in events(pipeline, data)
        if isinstance(e, Slice) and e.track.kind == "stream"
    }
    assert tracks == {("GPU 0 stream 7", "layers0"), ("GPU 1 stream 7", "layers1")}


def test_the_timeline_page_has_a_row_a_gpu(pipeline: Path) -> None:
    source, trace = opened(pipeline)
    lane = trace.lanes.lanes[0]
    assert [work.device for work in lane.others] == [1]
    assert lane.work.device == 0 and len(lane.work) == len(lane.others[0]) == 20  # type: ignore[union-attr]
    drawn = layout(source.snapshot(), View(UNICODE, trace=trace), 120, 40)
    text = [text_of(row) for row in drawn.rows]
    heads = [line.split("  ")[0] for line in text]
    assert "GPU 0" in heads and "GPU 1" in heads
    assert any("GPU 0 busy" in line for line in text)
