"""speedscope, collapsed stacks and the TUI page, from a run really made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace, load_trace
from llmprof.errors import UsageError
from llmprof.exports.stacks.collapsed import collapsed
from llmprof.exports.stacks.rows import engine_stacks
from llmprof.exports.stacks.speedscope import speedscope
from llmprof.runfile.reader import RunFileReader
from llmprof.tracers.pyspy import tracer as pyspy
from llmprof.tracers.pyspy.ptrace import permission
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import UNICODE
from llmprof.tui.host import page as host_page
from llmprof.tui.view import View

needs_pyspy = pytest.mark.skipif(
    pyspy.find() is None or not permission().allowed, reason="py-spy is missing or not allowed"
)


@pytest.fixture
def run(llmprof, tmp_path: Path) -> Path:
    engines = ("--engine", "hosts:what=sleep", "--engine", "hosts:what=sync")
    steps = ("--rounds", "1", "--traced-steps", "64", "--host-rate", "1000")
    done = llmprof("--headless", *engines, *steps, "--model", "none", "-o", "run.sqlite")
    assert done.returncode == 0, done.stderr
    assert "asleep or waiting for a lock" in done.stdout
    return tmp_path / "run.sqlite"


@needs_pyspy
def test_exports_and_page(run: Path, llmprof, tmp_path: Path) -> None:
    for to in ("speedscope", "collapsed"):
        done = llmprof("export", str(run), "--to", to)
        assert done.returncode == 0, done.stderr
    document = speedscope("run.sqlite", engine_stacks([run]))
    assert json.loads((tmp_path / "run.speedscope.json").read_text()) == document
    frames = [f["name"] for f in document["shared"]["frames"]]
    assert len(document["profiles"]) == 2
    for profile in document["profiles"]:
        assert len(profile["samples"]) == len(profile["weights"]) > 10
        assert sum(profile["weights"]) == profile["endValue"]
        assert all(0 <= i < len(frames) for stack in profile["samples"] for i in stack)
    # Outermost first. A sample may lie between two steps, or be torn: nothing stops the worker.
    stacks = [[frames[i] for i in stack] for stack in document["profiles"][0]["samples"]]
    whole = [stack for stack in stacks if any("_sleep" in frame for frame in stack)]
    steps = [stack for stack in whole if "decode_step" in stack[0]]
    assert len(steps) > len(stacks) / 2 and len(steps) > 0.9 * len(whole)

    assert (tmp_path / "run.collapsed").read_text() == collapsed(engine_stacks([run]))
    lines = collapsed(engine_stacks([run], engine="hosts:what=sync")).splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == 1000 * round(
        document["profiles"][1]["endValue"]
    )
    assert all(line.startswith("hosts:what=sync;") for line in lines)
    assert any("synchronize" in line for line in lines)
    with pytest.raises(UsageError, match="no engine 'x'"):
        engine_stacks([run], engine="x")
    with pytest.raises(UsageError, match="CPU"):
        engine_stacks([run], select="gaps")

    with RunFileReader(run) as reader:
        data = reader.run_data()
    trace = load_trace(build(data), data)
    assert isinstance(trace, RunTrace)
    snapshot = RunDataSource(data).snapshot()
    for width in (80, 120):
        rows = host_page.page(snapshot, View(UNICODE, page="host", trace=trace), width)
        text = "\n".join(text_of(line) for line in rows)
        assert all(width_of(line) <= width for line in rows)
        assert "HostEngine._sleep" in text and "all traced steps" in text
        assert "A hosts:what=sleep → B hosts:what=sync" in text
        assert ("Stream.synchronize" in text) == (width == 120)  # one engine's lane where narrow
    gaps = host_page.page(snapshot, View(UNICODE, page="host", trace=trace, host="gaps"), 120)
    assert "CPU" in "\n".join(text_of(line) for line in gaps)
