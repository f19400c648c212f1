"""Host stacks in stretches: two runs of py-spy over one program, read back as one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from llmprof.recording.sampled import host
from llmprof.recording.sampled.host import HostStacks
from llmprof.recording.sampled.stretches import Spread
from llmprof.records import EngineRecord, RoundRecord, RunInfo
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import HOST_ROUNDS, process_number
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pyspy.tracer import HostPlan

PROGRAM = """
import time
def thinks_hard():
    while True:
        sum(range(2000))
thinks_hard()
"""


def test_stacks_of_two_stretches_are_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "SPREAD", Spread(first_s=1.5, each_s=1.5, every_s=3.0, most_s=60))
    path, t0 = tmp_path / "run.sqlite", time.monotonic_ns()
    info = RunInfo(t0, 0, "0", None, ["x"], {}, {}, "full", source="recorded")
    child = subprocess.Popen([sys.executable, "-c", PROGRAM])
    process = process_number(child.pid, 0)
    engine = EngineRecord(3, "e", "e", "", {}, "running", traced_pid=process)
    said: list[str] = []
    try:
        with RunFileWriter(path, info) as writer:
            writer.put_engine(engine)
            stacks = HostStacks(HostPlan(rate_hz=100), tmp_path, lambda: None)
            deadline = time.monotonic() + 60
            while stacks._number < 2 and stacks._failed is None and time.monotonic() < deadline:
                said.append(stacks.follow(True, time.monotonic(), writer, [engine], 0))
                time.sleep(0.05)
            stacks.stop(writer, [engine])
            if stacks._failed is not None:
                assert "ptrace" in stacks._failed.reason or "py-spy" in stacks._failed.reason
                pytest.skip(stacks._failed.reason)
    finally:
        child.kill()
        child.wait()
    assert [text for text in said if text] == [
        "host stacks are sampled in the first 2 s of the window, then 2 s of every 3 s, 60 s in all"
    ]
    assert list(tmp_path.glob("host*/*")) == [] and stacks.pids == []
    everything = RoundRecord(1, 3, "traced", 0, process, 0, 0, 0, array("q"), 1 << 50, True)
    with closing(sqlite3.connect(path)) as sql:
        rounds = sql.execute("SELECT round_id, samples FROM LLMPROF_HOST_ROUND").fetchall()
    with RunFileReader(path) as reader:
        rows = reader.host_rows(everything)
        missing = [m for m in reader.run_data().missing if m.name != "timing pass"]
    assert len(rounds) >= 2 and all(number % HOST_ROUNDS == 3 for number, _ in rounds)
    assert len({number for number, _ in rounds}) == len(rounds) and missing == []
    assert rows is not None and rows.sampled.samples == sum(count for _, count in rounds) > 20
    assert rows.sampled.last_ns - rows.sampled.first_ns > 1_500_000_000
    assert "thinks_hard" in {frame.function for frame in rows.frames.values()}
