"""The window of the recorder: when CUPTI comes, and when it is given back. In real processes, over
stub libraries, with ASan and UBSan in them."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import recorder_build
from recorder_spools import frames, has, kernels, kinds_in, marks, marks_of, only, started
from waiting import until

from llmprof.recording.control import ACTIVITY, LEAVE, RANGES, ControlPage
from llmprof.tracers.cupti import spool

HERE, GONE = 7, 8
"""The stub program's exit code tells whether CUPTI was there at its end."""


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


def test_a_window_that_is_closed_gives_cupti_back(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """Within a call of the program's (the stub aborts elsewhere), while another thread flushes."""
    page = ControlPage(tmp_path, ACTIVITY | RANGES | LEAVE)
    process = started(built, tmp_path, "exit", "1500", "20", "1000")
    until(lambda: has(tmp_path, spool.RECORDS))
    page.want(RANGES | LEAVE)
    until(lambda: has(tmp_path, "off"))
    assert process.wait(60) == GONE
    page.close()
    assert marks(tmp_path) == ["on", "off", "end"]
    found, calls = kernels(only(tmp_path))
    assert 0 < found < 30_000 and found == calls / 2 and found % 20 == 0


@pytest.mark.parametrize("leave", [LEAVE, 0])
def test_a_window_that_opens_and_closes_again_and_again(
    built: recorder_build.Built, tmp_path: Path, leave: int
) -> None:
    page = ControlPage(tmp_path, ACTIVITY | RANGES | leave)
    process = started(built, tmp_path, "exit", "3000", "5", "1000")
    seen = 0
    for round_ in range(3):
        page.want(ACTIVITY | RANGES | leave)
        until(lambda: marks_of(tmp_path).count("on") == round_ + 1)  # noqa: B023
        until(lambda: kernels(only(tmp_path))[0] > seen)  # noqa: B023
        page.want(RANGES | leave)
        until(lambda: marks_of(tmp_path).count("off") == round_ + 1)  # noqa: B023
        seen = kernels(only(tmp_path))[0]
    assert process.wait(60) == (GONE if leave else HERE)
    page.close()
    assert marks(tmp_path) == ["on", "off"] * 3 + ["end"]
    assert not [value for kind, value in frames(only(tmp_path)) if kind == spool.ERROR]
    attached = [v for k, v in frames(only(tmp_path)) if k == spool.PROCESS and "library" in v]
    assert len(attached) == (3 if leave else 1)
    assert 0 < seen < 15_000


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"STUB_THREADS": "1"}, "more than one thread launches"),
        ({"LLMPROF_RECORD_TRACE": "kernels"}, "how many threads launch"),
        ({"LLMPROF_STUB_CUPTI": "120900"}, "13.0"),
    ],
)
def test_cupti_stays_where_it_cannot_leave_safely(
    built: recorder_build.Built, tmp_path: Path, more: dict[str, str], why: str
) -> None:
    """Told once; the window opens and closes all the same."""
    page = ControlPage(tmp_path, ACTIVITY | RANGES | LEAVE)
    process = started(built, tmp_path, "exit", "2500", "5", "1000", **more)
    for wanted in (ACTIVITY, 0, ACTIVITY, 0):
        page.want(wanted | RANGES | LEAVE)
        until(lambda: marks_of(tmp_path)[-1:] == ["on" if wanted else "off"])  # noqa: B023
        time.sleep(0.1)
    assert process.wait(60) == HERE
    page.close()
    assert marks(tmp_path) == ["on", "off", "on", "off", "end"]
    (told,) = [value for kind, value in frames(only(tmp_path)) if kind == spool.ERROR]
    assert "CUPTI stays" in str(told["what"]) and why in str(told["advice"])


def test_a_window_that_opens_again_before_the_programs_next_call(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    """CUPTI is still there: it stays. If the call came first, it comes again."""
    page = ControlPage(tmp_path, ACTIVITY | RANGES | LEAVE)
    process = started(built, tmp_path, "exit", "8", "5", "400000")
    until(lambda: has(tmp_path, "on"))
    for _ in range(3):
        page.want(RANGES | LEAVE)
        time.sleep(0.15)
        page.want(ACTIVITY | RANGES | LEAVE)
        time.sleep(0.3)
    assert process.wait(60) == HERE
    page.close()
    seen = [where for where in marks(tmp_path) if where != "tick"]
    lost = seen.count("off")
    assert seen == ["on", *["off", "on"] * lost, "end"]
    assert 40 - 5 * lost <= kernels(only(tmp_path))[0] <= 40


def test_a_killed_llmprof_leaves_no_cupti_behind(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    spools = tmp_path / "spools"
    spools.mkdir()
    page = ControlPage(spools, ACTIVITY | RANGES | LEAVE)
    process = subprocess.Popen(
        [built.program, "exit", "4000", "5", "1000"], env=built.environment(spools)
    )
    until(lambda: has(spools, spool.RECORDS) if list(spools.glob("*.spool")) else False)
    page.close()
    until(lambda: not spools.exists())
    assert process.wait(60) == GONE
