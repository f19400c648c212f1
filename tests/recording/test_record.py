"""``llmprof record`` as a user runs it, over stub libraries of the driver and of CUPTI."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from opened import Opened
from record_command import Record, kernels
from waiting import until

from llmprof.analysis.view.report import build as build_report
from llmprof.errors import RunFileError
from llmprof.recording.plan import RecordPlan
from llmprof.recording.run import Recording
from llmprof.records import RunData
from llmprof.records.steps import WINDOW_CLOSED
from llmprof.runfile.reader import RunFileReader


def test_a_program_becomes_an_engine_with_its_steps(record: Record) -> None:
    code, said = record.run(record.program, "exit", "40", "25", "10000", RANK="1")
    assert code == 7 and record.left() == []
    assert "recorded_program rank 1: 1,000 kernels, 0 copies, 2,000 calls, 40 ranges" in said
    data = record.data()
    assert data.info.source == "recorded" and data.info.state == "finished"
    (process,) = data.processes
    assert (process.kernels, process.ranges, process.rank) == (1000, 40, 1)
    assert process.ended and process.command[1:4] == ["exit", "40", "25"]
    (traced,) = data.rounds
    assert traced.pass_name == "traced" and len(traced.stamps_ns) == 41
    report = kernels(data, "recorded_program rank 1")
    assert report.kernels_per_step == 25 and report.launches_per_step == 25


def test_its_streams_and_arguments_are_its_own(record: Record) -> None:
    script = "cat; printf '%s|' \"$@\"; echo bad >&2; exit 5"
    process = record.start("sh", "-c", script, "x", "-o", "--", "a b")
    out, said = process.communicate(timeout=60)
    assert process.returncode == 5 and out == "-o|--|a b|" and said.startswith("bad\n")
    (missing,) = [m for m in record.data().missing if m.name == "kernels"]
    assert "no process of the program loaded the CUDA driver" in missing.reason


@pytest.mark.parametrize(
    ("end", "code"), [("_exit", 3), ("term", 143), ("abort", 134), ("segv", 139), ("kill", 137)]
)
def test_deaths_pass_through_and_leave_a_run(record: Record, end: str, code: int) -> None:
    assert record.run(record.program, end, "150", "10", "1000")[0] == code
    (process,) = record.data().processes
    assert 0 < process.kernels <= 1500 and process.ended == (end == "term")
    assert record.left() == []


def test_a_starter_that_ignores_its_children_takes_no_exit_code(record: Record) -> None:
    command = f"{sys.executable} -m llmprof record -o {record.output} -- sh -c 'exit 7'"
    script = f"trap '' CHLD; exec {command}"
    done = subprocess.run(["sh", "-c", script], env=record.environment, stderr=subprocess.PIPE)
    assert done.returncode == 7


def test_an_image_behind_exec_is_another_engine(record: Record) -> None:
    again = [record.program, "exit", "5", "4", "0"]
    assert record.run(record.program, "exec", "50", "4", "1000", *again)[0] == 7
    data = record.data()
    assert [e.label for e in data.engines] == ["recorded_program", "recorded_program#2"]
    first, second = data.processes
    assert first.pid == second.pid and first.process != second.process
    assert second.kernels == 20 and second.engine_id == 1
    assert kernels(data, "recorded_program#2").kernels_per_step == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_program(record: Record, number: signal.Signals) -> None:
    ready = record.folder.with_suffix(".ready")
    process = record.start(record.program, "wait", "20", "10", "1000", STUB_READY=str(ready))
    until(ready.exists)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert record.left() == [] and record.data().processes[0].kernels == 200


def test_a_killed_llmprof_leaves_the_program_alone_and_no_files(record: Record) -> None:
    process = record.start(record.program, "wait", "20", "10", "1000")
    until(lambda: list(record.folder.glob(".llmprof-record-*/*.spool")))
    (spool,) = record.folder.glob(".llmprof-record-*/*.spool")
    pid = int(spool.name.split("-")[0])
    until(lambda: _has_kernels(record.output))
    process.kill()
    process.wait()
    try:
        until(lambda: record.left() == [])
        os.kill(pid, 0)  # alive
        data = record.data()
        assert data.info.state == "running"
        assert any("was not ended" in warning.text for warning in data.warnings)
        (engine,), (found,) = data.engines, data.processes
        assert found.kernels > 0 and engine.info is not None and engine.info.device == "cuda:0"
        assert sum(r.steps for r in data.rounds) > 0
        assert kernels(data, engine.label).kernels_per_step == 10
    finally:
        os.kill(pid, signal.SIGKILL)


def test_what_is_left_of_a_killed_programs_group_is_ended(record: Record) -> None:
    script = f"{record.program} wait 1 1 0 & echo $!; wait"
    process = record.start("sh", "-c", script)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    until(lambda: list(record.folder.glob(".llmprof-record-*/*.spool")))
    process.terminate()
    assert process.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(("more", "code"), [((), 8), (("--no-detach",), 7)])
def test_a_window_by_time_and_by_steps(record: Record, more: tuple[str, ...], code: int) -> None:
    """8: CUPTI was given back."""
    options = ("--after", "20steps", "--for", "400ms", *more)
    assert record.run(record.program, "exit", "1200", "1", "1000", options=options)[0] == code
    (process,) = record.data().processes
    # A loaded machine sees the window's end late; it must have ended all the same.
    assert 0 < process.kernels < 1180 and process.ranges == 1200
    # Ranges are recorded all the time, and only steps with work are in the means: one kernel each,
    # behind which the program sleeps 1 ms.
    seen = Opened(record.output).kernels
    assert abs(seen.step_count - process.kernels) <= 1 and seen.kernels_per_step == 1
    assert isinstance(seen.wall_ms_per_step, float) and seen.wall_ms_per_step > 0.99


def test_a_window_that_opens_again_has_calls_of_its_own(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUPTI counts calls from 1 again when it comes again."""
    for name, value in record.environment.items():
        monkeypatch.setenv(name, value)
    recording = Recording(RecordPlan((record.program, "exit", "1500", "3", "1000"), record.output))
    ended = threading.Event()

    def press() -> None:
        while not ended.wait(0.25):
            recording.toggle_window()

    presses = threading.Thread(target=press)
    presses.start()
    try:
        recording.run()
    finally:
        ended.set()
        presses.join()
    with closing(sqlite3.connect(record.output)) as sql:
        launched = sql.execute(
            "SELECT k.start - min(r.start), max(r.start) - k.start, count(*)"
            " FROM CUPTI_ACTIVITY_KIND_KERNEL k LEFT JOIN CUPTI_ACTIVITY_KIND_RUNTIME r"
            " USING (correlationId) GROUP BY k.rowid ORDER BY k.start"
        ).fetchall()
        pauses = sql.execute(
            "SELECT count(*) FROM (SELECT start - lag(start) OVER (ORDER BY start) AS pause"
            " FROM CUPTI_ACTIVITY_KIND_KERNEL) WHERE pause > 150000000"
        ).fetchone()
    assert len(launched) > 100 and pauses[0] > 0
    assert set(launched) == {(0, 0, 2)}
    opened = Opened(record.output)
    closed = opened.data.info.environment[WINDOW_CLOSED]
    assert len(closed) >= pauses[0] and all(begin < end for begin, end in closed)
    assert any("while the window was closed" in t for t in opened.first.steps_found.left_out)
    steps = opened.kernels.steps
    assert isinstance(steps, tuple)
    seen = [s for s in steps if s.counted]
    assert 0.9 * len(launched) <= 3 * len(seen) <= 1.1 * len(launched)


def test_twice_states_the_slowdown(record: Record) -> None:
    code, said = record.run(record.program, "exit", "20", "5", "10000", options=("--twice",))
    assert code == 7 and "running the command again, untraced" in said and record.left() == []
    data = record.data()
    assert [(r.pass_name, len(r.stamps_ns)) for r in data.rounds] == [
        ("timing", 21),
        ("traced", 21),
    ]
    report = build_report(data)
    (engine,) = report.engines
    assert any("one token a step" in warning.text for warning in report.warnings)
    assert isinstance(engine.steps.slowdown.ratio, float) and engine.steps.slowdown.ratio > 0.2
    assert isinstance(engine.steps.tok_s.value, float)
    assert "when a request began" in str(engine.steps.ttft_ms.value)  # and not 0
    assert not any(m.name == "timing pass" for m in data.missing)


def test_twice_without_ranges_says_why(record: Record) -> None:
    script = f"NVTX_INJECTION64_PATH= exec {record.program} exit 3 5 30000"
    assert record.run("sh", "-c", script, options=("--twice",))[0] == 7
    (missing,) = [m for m in record.data().missing if m.name == "timing pass"]
    assert "marks no steps with NVTX" in missing.reason


PYTHON_LOOP = """
import ctypes, time
cuda, cupti = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcupti.so.13")
cuda.cuInit(0)
def thinks_hard(until):
    while time.monotonic() < until:
        cupti.stub_launch(1)
        time.sleep(0.001)
thinks_hard(time.monotonic() + 6)
"""


def stacks_hold_thinks_hard(record: Record, data: RunData, label: str) -> None:
    """Skips where py-spy may not read the program."""
    denied = data.why_missing(label, "host")
    if denied:
        assert "ptrace" in denied or "py-spy" in denied
        pytest.skip(denied)
    (traced,) = data.rounds
    with RunFileReader(record.output) as reader:
        rows = reader.host_rows(traced)
    assert rows is not None and len(rows.samples) > 20
    assert "thinks_hard" in {frame.function for frame in rows.frames.values()}


def test_host_stacks_of_a_process_that_launches(record: Record) -> None:
    code, _ = record.run(sys.executable, "-c", PYTHON_LOOP, options=("--host", "100"))
    assert code == 0 and record.left() == []
    data = record.data()
    stacks_hold_thinks_hard(record, data, data.engines[0].label)


ON_A_CPU = """
import time
def thinks_hard(until):
    while time.monotonic() < until:
        sum(range(3000))
thinks_hard(time.monotonic() + 9)
"""


def test_host_stacks_of_a_program_that_uses_no_gpu(record: Record) -> None:
    """No driver is loaded, so no recorder either: the stacks are all that there is."""
    code, said = record.run(sys.executable, "-c", ON_A_CPU, options=("--host", "100"))
    assert code == 0 and record.left() == []
    data = record.data()
    assert any("no process of the program loaded the CUDA driver" in m.reason for m in data.missing)
    (engine,) = data.engines
    stacks_hold_thinks_hard(record, data, engine.label)
    assert code == 0 and "Traceback" not in said


def test_levels(record: Record) -> None:
    record.run(record.program, "exit", "10", "5", "20000", options=("--trace", "steps"))
    (process,) = record.data().processes
    assert (process.kernels, process.ranges, process.engine_id) == (0, 10, 0)
    (traced,) = record.data().rounds
    assert traced.steps == 9 or traced.steps == 10


def test_gpus_that_are_not_wanted_are_left_out(record: Record) -> None:
    record.run(record.program, "exit", "10", "5", "30000", options=("--gpus", "1"))
    assert record.data().engines == []


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--gpus", "1"), "all that the program ran was on GPU 0, which --gpus leaves out"),
        (("--after", "90s"), "so the window never opened"),
        (("--after", "90steps"), "ended after 10 NVTX ranges"),
        (("--host",), "no host stacks: the program ended before py-spy began"),
    ],
)
def test_what_is_not_there_is_said_at_the_end(
    record: Record, option: tuple[str, ...], reason: str
) -> None:
    end = "nocuda" if option == ("--host",) else "exit"
    code, said = record.run(record.program, end, "10", "5", "2000", options=option)
    assert reason in said and "run file" in said.splitlines()[-1], (code, said)
    assert " 0 kernels" not in said


def test_a_file_without_a_loader_leaves_no_run_file(record: Record) -> None:
    """What cannot be started is no recording, under a name of the user's or one of ours."""
    program = record.folder / "program"
    program.write_text("garbage")
    program.chmod(0o755)
    code, said = record.run(str(program))
    assert code == 2 and "Exec format error" in said and record.left() == ["program"]
    assert not record.output.exists()
    for words in (["--", "no-such-command"], ["--host", "0", "--", "true"]):
        command = [sys.executable, "-m", "llmprof", "record", *words]
        done = subprocess.run(command, cwd=record.folder, env=record.environment, stderr=-1)
        assert done.returncode == 2 and record.left() == ["program"]


def test_a_run_file_that_is_there_stays(record: Record) -> None:
    record.output.write_text("precious")
    code, said = record.run("true")
    assert code == 2 and "exists already" in said
    assert record.output.read_text() == "precious"


@pytest.mark.parametrize(
    ("command", "more", "text"),
    [
        (["no-such-command"], {}, "cannot run no-such-command: no such command"),
        (["/no/such"], {}, "cannot run /no/such: no such command"),
        (["/tmp"], {}, "cannot run /tmp: it is a folder"),
        ([__file__], {}, "it is not executable"),
        (["true"], {"CUDA_INJECTION64_PATH": "/x.so"}, "CUDA_INJECTION64_PATH=/x.so is set"),
        ([], {}, "record what?"),
    ],
)
def test_bad_usage_is_one_line(
    record: Record, command: list[str], more: dict[str, str], text: str
) -> None:
    code, said = record.run(*command, **more)
    assert code == 2 and text in said and said.count("\n") == 1
    assert not record.output.exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--for", "soon"),
        ("--for", "0s"),
        ("--after", "9" * 400 + "steps"),
        ("--gpus", "one"),
        ("-o", "run.db"),
    ],
)
def test_bad_options_are_one_line(record: Record, option: tuple[str, ...]) -> None:
    code, said = record.run("true", options=option)
    assert code == 2 and option[-1] in said and said.count("\n") == 1


UNMARKED_LOOP = """
import ctypes, time
cuda, cupti = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcupti.so.13")
cuda.cuInit(0)
for step in range(60):
    cupti.stub_launch(9)
    cupti.stub_copy_to_host()
    time.sleep(0.002)
"""


def test_a_program_without_ranges_has_steps_when_it_is_opened(record: Record) -> None:
    assert record.run(sys.executable, "-c", UNMARKED_LOOP)[0] == 0
    data = record.data()
    (engine,) = data.engines
    found = data.steps_found[engine.engine_id]
    assert found.source == "detected" and dict(found.evidence)["cut"] == "copy to host"
    steps = sum(r.steps for r in data.rounds)
    assert 55 <= steps <= 60  # the first and the last have no border
    report = kernels(data, engine.label)
    assert report.kernels_per_step == 9


def test_a_window_by_steps_needs_ranges_and_says_so(record: Record) -> None:
    assert record.run(sys.executable, "-c", UNMARKED_LOOP, options=("--after", "5steps"))[0] == 0
    (missing,) = [m for m in record.data().missing if m.name == "kernels"]
    assert "--after 5steps" in missing.reason and "NVTX" in missing.reason


def _has_kernels(file: Path) -> bool:
    try:
        with RunFileReader(file) as reader:
            return any(process.kernels >= 200 for process in reader.run_data().processes)
    except RunFileError:
        return False  # not there yet, or being written
