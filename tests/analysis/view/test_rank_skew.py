"""Processes that do the same on two GPUs without a collective in the file: skew, no verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from capture_factory import Capture

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document
from llmprof.exports.text.table import render
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE, Glyphs
from llmprof.tui.frame import body
from llmprof.tui.view import View

US = 1000


def capture(path: Path, behind_us: int, other: str = "") -> Path:
    """Two processes of one name, 120 kernels each; the second one begins each of them later."""
    with Capture(path) as made:
        for pid, device in ((111, 0), (112, 1)):
            made.process(pid)
            for number in range(120):
                start = 10**9 + 100 * US * number + device * behind_us * US
                name = ("gemm", "norm", "rope")[number % 3]
                if other and device and number % 2:
                    name = other
                made.kernel(start, start + 40 * US, name, pid=pid, device=device)
    return path


def trace_of(path: Path) -> tuple[RunDataSource, RunTrace]:
    source = RunDataSource(open_run(path))
    trace = source.trace()
    assert isinstance(trace, RunTrace)
    return source, trace


def test_skew_is_shown_and_no_rank_is_called_late(tmp_path: Path) -> None:
    path = capture(tmp_path / "two.sqlite", 35)
    data = open_run(path)
    assert [e.label for e in data.engines] == ["python3 GPU 0", "python3 GPU 1"]
    _, trace = trace_of(path)
    assert trace.ranks == ()
    (skew,) = trace.skews
    assert [line.name for line in skew.ranks] == ["rank 0 · GPU 0", "rank 1 · GPU 1"]
    assert [line.behind_us for line in skew.ranks] == [0.0, 35.0]
    assert [line.first for line in skew.ranks] == [1.0, 0.0]
    assert (skew.kernels, skew.left_out) == (120, 0)
    assert "who waits for whom is not known" in skew.words
    document = to_document(build(data), data, trace)
    jsonschema.validate(document, json.loads(schema.text()))
    assert [line["pid"] for line in document["skews"][0]["ranks"]] == [111, 112]
    text = render(build(data), 80, trace)
    assert "Skew of python3 GPU 0" in text
    assert max(map(len, text.splitlines())) <= 80


def test_processes_that_do_other_work_are_no_group(tmp_path: Path) -> None:
    _, trace = trace_of(capture(tmp_path / "two.sqlite", 35, other="conv"))
    assert trace.skews == ()


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_page_has_a_strip_a_rank(
    tmp_path: Path, glyphs: Glyphs, width: int, height: int
) -> None:
    source, trace = trace_of(capture(tmp_path / "two.sqlite", 35))
    view = replace(View(glyphs), page="ranks", trace=trace)
    rows = body(source.snapshot(), view, width, height)
    assert max(map(width_of, rows)) <= width
    lines = [text_of(line).rstrip() for line in rows]
    first, second = (next(x for x in lines if x.startswith(f"rank {n}")) for n in (0, 1))
    assert glyphs.bars[-1] not in first[16:]
    assert set(second[16:].strip()) == {glyphs.bars[-1]}
