"""The window of the recorder: when CUPTI comes, and when it is given back. In real processes, over
stub libraries, with ASan and UBSan in them."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import recorder_build
from recorder_spools import frames, has, kernels, kinds_in, marks, marks_of, only
from waiting import until

from llmprof.recording.control import ACTIVITY, LEAVE, RANGES, ControlPage
from llmprof.tracers.cupti import spool


def test_cupti_is_not_touched_before_the_window_opens(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """Its mere presence makes each launch of a CUDA graph longer."""
    page = ControlPage(tmp_path, 2)
    process = subprocess.Popen(
        [built.program, "wait", "20000", "1", "1000"], env=built.environment(tmp_path)
    )
    try:
        until(lambda: bool(list(tmp_path.glob("*.spool"))))
        time.sleep(0.5)
        assert kinds_in(tmp_path)[spool.LAYOUT] == 0
        page.want(3)
        until(lambda: kinds_in(tmp_path)[spool.RECORDS] > 0)
    finally:
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        page.close()
    found = frames(only(tmp_path))
    assert any(value and value.get("cuda") == 1 for kind, value in found if kind == spool.PROCESS)
    assert not [value for kind, value in found if kind == spool.ERROR]
    assert kernels(only(tmp_path))[0] > 0


def test_a_window_that_opens_within_cuinit_waits_for_its_end(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """One that is open when the recorder is loaded does not wait: it is opened there."""
    page, injected = ControlPage(tmp_path, 2), tmp_path / "injected"
    begun = time.monotonic()
    process = subprocess.Popen(
        [built.program, "wait", "20000", "1", "1000"],
        env=built.environment(
            tmp_path, LLMPROF_STUB_INIT_MS="1500", LLMPROF_STUB_INJECTED=str(injected)
        ),
    )
    try:
        until(injected.exists)
        page.want(3)
        until(lambda: kinds_in(tmp_path)[spool.LAYOUT] > 0)
        assert time.monotonic() - begun > 1.5
    finally:
        process.terminate()
        process.wait(60)
        page.close()
    assert not [value for kind, value in frames(only(tmp_path)) if kind == spool.ERROR]


def test_a_window_that_opens_as_the_program_ends(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """Attaching, on the helper's thread, and the end of the process, on the program's."""
    for number in range(12):
        spools = tmp_path / str(number)
        spools.mkdir()
        page = ControlPage(spools, 2)
        process = subprocess.Popen(
            [built.program, "exit", "10", "5", "10000"], env=built.environment(spools)
        )
        time.sleep(0.02 * number)
        page.want(3)
        assert process.wait(60) == 7
        page.close()


def test_a_window_that_opens_and_closes(built: recorder_build.Built, tmp_path: Path) -> None:
    page = ControlPage(tmp_path, 2)
    process = subprocess.Popen(
        [built.program, "wait", "30000", "1", "1000"], env=built.environment(tmp_path)
    )
    try:
        until(lambda: list(tmp_path.glob("*.spool")))
        page.want(3)
        until(lambda: has(tmp_path, "on") and has(tmp_path, spool.RECORDS))
        page.want(2)
        until(lambda: has(tmp_path, "off"))
    finally:
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        page.close()
    assert marks(tmp_path) == ["on", "off", "end"]
    assert 0 < kernels(only(tmp_path))[0] < 30000


def test_a_window_that_is_closed_for_good_gives_cupti_back(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """Within a call of the program's (the stub aborts elsewhere), while another thread flushes; and
    does not come again."""
    page = ControlPage(tmp_path, ACTIVITY | RANGES)
    process = subprocess.Popen(
        [built.program, "exit", "1500", "20", "1000"], env=built.environment(tmp_path)
    )
    until(lambda: list(tmp_path.glob("*.spool")))
    until(lambda: has(tmp_path, spool.RECORDS))
    page.want(RANGES | LEAVE)
    until(lambda: has(tmp_path, "off"))
    page.want(ACTIVITY | RANGES)
    assert process.wait(60) == 8
    page.close()
    assert marks(tmp_path) == ["on", "off", "end"]
    found, calls = kernels(only(tmp_path))
    assert 0 < found < 30_000 and found == calls / 2 and found % 20 == 0


def test_cupti_stays_where_the_window_was_shut_before(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """Graphs that were replayed meanwhile would not survive its leave."""
    page = ControlPage(tmp_path, ACTIVITY | RANGES)
    process = subprocess.Popen(
        [built.program, "exit", "2500", "5", "1000"], env=built.environment(tmp_path)
    )
    until(lambda: list(tmp_path.glob("*.spool")))
    for wanted in (ACTIVITY | RANGES, RANGES, ACTIVITY | RANGES, RANGES | LEAVE):
        page.want(wanted)
        until(lambda: marks_of(tmp_path)[-1] == ("on" if wanted & ACTIVITY else "off"))  # noqa: B023
    assert process.wait(60) == 7
    page.close()
    assert marks(tmp_path) == ["on", "off", "on", "off", "end"]
    (told,) = [value for kind, value in frames(only(tmp_path)) if kind == spool.ERROR]
    assert told["what"] == "--detach" and "CUPTI stays" in told["advice"]
