"""``llmprof record`` as a user runs it, over stub libraries of the driver and of CUPTI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import recorder_build
from waiting import until

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build as build_report
from llmprof.analysis.view.traced import load_trace
from llmprof.errors import RunFileError
from llmprof.recording.plan import RecordPlan
from llmprof.recording.run import Recording
from llmprof.records import RunData
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.writer import RunFileWriter


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> recorder_build.Built:
    if recorder_build.compiler() is None:
        pytest.skip("no C compiler to build the recorder with")
    return recorder_build.make(tmp_path_factory.mktemp("stubs"), ("-g",))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Record:
    """Runs the command in a folder of its own."""

    def __init__(self, built: recorder_build.Built, cache: Path, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "run.sqlite"
        self.program = str(built.program)
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(built.folder),
            "XDG_CACHE_HOME": str(cache),
        }

    def start(
        self, *arguments: str, options: tuple[str, ...] = (), **more: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmprof", "record", "-o", str(self.output), *options]
        return subprocess.Popen(
            [*command, "--", *arguments],
            env={**self.environment, **more},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, options: tuple[str, ...] = (), **more: str) -> tuple[int, str]:
        """Exit code and stderr."""
        process = self.start(*arguments, options=options, **more)
        _, said = process.communicate(timeout=120)
        assert "Traceback" not in said, said
        return process.returncode, said

    def data(self) -> RunData:
        return open_run(self.output)

    def left(self) -> list[str]:
        """Files beside the run file: none of ours may stay."""
        return sorted(p.name for p in self.folder.iterdir() if p != self.output)


@pytest.fixture
def record(built: recorder_build.Built, cache: Path, tmp_path: Path) -> Record:
    return Record(built, cache, tmp_path)


def kernels(data: RunData, label: str) -> KernelReport:
    trace = load_trace(build_report(data), data)
    assert trace is not None
    report = trace.engine(label).kernels
    assert isinstance(report, KernelReport)
    return report


def test_a_program_becomes_an_engine_with_its_steps(record: Record) -> None:
    code, said = record.run(record.program, "exit", "40", "25", "2000", RANK="1")
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
    until(lambda: _opens(record.output))
    process.kill()
    process.wait()
    try:
        until(lambda: record.left() == [])
        os.kill(pid, 0)  # alive
        assert record.data().info.state == "running"
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


def test_a_window_by_time_and_by_steps(record: Record) -> None:
    options = ("--after", "20steps", "--for", "400ms")
    assert record.run(record.program, "exit", "1200", "1", "1000", options=options)[0] == 7
    (process,) = record.data().processes
    # A loaded machine sees the window's end late; it must have ended all the same.
    assert 0 < process.kernels < 1180 and process.ranges == 1200


def test_twice_states_the_slowdown(record: Record) -> None:
    code, said = record.run(record.program, "exit", "20", "5", "2000", options=("--twice",))
    assert code == 7 and "running the command again, untraced" in said and record.left() == []
    data = record.data()
    assert [(r.pass_name, len(r.stamps_ns)) for r in data.rounds] == [
        ("timing", 21),
        ("traced", 21),
    ]
    (engine,) = build_report(data).engines
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


def test_host_stacks_of_a_process_that_launches(record: Record) -> None:
    code, _ = record.run(sys.executable, "-c", PYTHON_LOOP, options=("--host", "100"))
    assert code == 0 and record.left() == []
    data = record.data()
    denied = data.why_missing(data.engines[0].label, "host")
    if denied:
        assert "ptrace" in denied or "py-spy" in denied
        pytest.skip(denied)
    (traced,) = data.rounds
    with RunFileReader(record.output) as reader:
        rows = reader.host_rows(traced)
    assert rows is not None and len(rows.samples) > 20
    assert "thinks_hard" in {frame.function for frame in rows.frames.values()}


def test_levels(record: Record) -> None:
    record.run(record.program, "exit", "10", "5", "0", options=("--trace", "steps"))
    (process,) = record.data().processes
    assert (process.kernels, process.ranges, process.engine_id) == (0, 10, 0)
    (traced,) = record.data().rounds
    assert traced.steps == 9 or traced.steps == 10


def test_gpus_that_are_not_wanted_are_left_out(record: Record) -> None:
    record.run(record.program, "exit", "10", "5", "30000", options=("--gpus", "1"))
    assert record.data().engines == []


def test_another_profiler_holds_cupti(record: Record) -> None:
    code, said = record.run(record.program, "exit", "5", LLMPROF_STUB_SUBSCRIBED="1")
    assert code == 7 and "another profiler holds CUPTI" in said
    assert any("cuptiSubscribe (39)" in m.reason for m in record.data().missing)


@pytest.mark.parametrize(
    ("command", "more", "text"),
    [
        (["no-such-command"], {}, "cannot run no-such-command: no such command"),
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


@pytest.mark.parametrize("option", [("--for", "soon"), ("--gpus", "one"), ("-o", "run.db")])
def test_bad_options_are_one_line(record: Record, option: tuple[str, str]) -> None:
    code, said = record.run("true", options=option)
    assert code == 2 and option[1] in said and said.count("\n") == 1


def test_compile_workers_are_no_engines(record: Record) -> None:
    """They load CUDA and run nothing."""
    workers = f"{record.program} exit 0 0 0; " * 5
    assert record.run("sh", "-c", workers + f"{record.program} exit 3 2 30000")[0] == 7
    data = record.data()
    assert len(data.engines) == 1 and len(data.processes) == 1


def test_a_hundred_processes_at_once(record: Record) -> None:
    script = f"for i in $(seq 100); do {record.program} return 3 2 1000 & done; wait"
    assert record.run("sh", "-c", script)[0] == 0
    data = record.data()
    assert len(data.engines) == 100 and len({e.label for e in data.engines}) == 100
    assert sum(p.kernels for p in data.processes) == 600


def test_a_static_program_is_not_recorded_and_says_so(record: Record, tmp_path: Path) -> None:
    cc = recorder_build.compiler()
    source, program = tmp_path / "s.c", tmp_path / "static"
    source.write_text("int main(void) { return 4; }")
    done = subprocess.run([str(cc), "-static", "-o", program, source], capture_output=True)
    if done.returncode:
        pytest.skip("no static C library here")
    assert record.run(str(program))[0] == 4
    assert any("linked statically" in m.reason for m in record.data().missing)


def test_a_full_disk_ends_the_recording_not_the_program(record: Record, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    record.output = small / "run.sqlite"
    mount = f"mount -t tmpfs -o size=3m tmpfs {small}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, mount], capture_output=True).returncode
    ):
        pytest.skip("no mounts of one's own here")
    copy = tmp_path / "copy.sqlite"
    command = [sys.executable, "-m", "llmprof", "record", "-o", str(record.output), "--"]
    command += [record.program, "exit", "400", "300", "1000"]
    script = f'{mount} && "$@"; code=$?; cp {record.output} {copy}; ls -A {small}; exit $code'
    done = subprocess.run(
        [*unshare, script, "sh", *command],
        env=record.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and done.returncode == 7, done.stderr
    assert "the program go" in done.stderr or "went on unrecorded" in done.stderr
    assert done.stdout.split() == ["run.sqlite"]
    with RunFileReader(copy) as reader:
        data = reader.run_data()
    assert data.info.source == "recorded"


def _opens(file: Path) -> bool:
    try:
        with RunFileReader(file) as reader:
            return reader.run_data().info.source == "recorded"
    except RunFileError:
        return False  # not there yet, or being written


NO_INODE = """
import errno, json, subprocess, sys
from pathlib import Path
from llmprof.recording.control import ControlPage
folder, program = Path(sys.argv[1]), sys.argv[2]
page = ControlPage(folder, 3)
code = subprocess.run([program, "exit", "5"]).returncode
lost = page.lost()
print(json.dumps([code, lost and lost.count, lost and errno.errorcode[lost.errno]]))
"""


def test_a_spool_that_cannot_be_made_is_told(
    record: Record, built: recorder_build.Built, tmp_path: Path
) -> None:
    """A disk that is full when a process starts: it would seem to have used no GPU."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o nr_inodes=2 tmpfs {small}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, mount], capture_output=True).returncode
    ):
        pytest.skip("no mounts of one's own here")
    script = f'{mount} && exec "$@"'
    command = [sys.executable, "-c", NO_INODE, str(small), record.program]
    done = subprocess.run(
        [*unshare, script, "sh", *command],
        env={**record.environment, **built.environment(small)}, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [7, 1, "ENOSPC"], done.stderr


def _kernel_rows(path: Path) -> int:
    """That are committed."""
    with closing(sqlite3.connect(path)) as sql:
        try:
            return int(sql.execute("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # no such table


@pytest.mark.parametrize("at_once", [True, False])
def test_a_recording_without_memory_says_so(
    record: Record, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Rows that were taken back are not counted, and the program is not blamed."""
    for name, value in record.environment.items():
        monkeypatch.setenv(name, value)
    put, behind = RunFileWriter.bulk, [0]

    def fails(writer: RunFileWriter, table: str, *arguments: object) -> None:
        # In the second batch, where that already wrote something.
        behind[0] += _kernel_rows(record.output) > 0
        if at_once or behind[0] > 1:
            raise MemoryError
        put(writer, table, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFileWriter, "bulk", fails)
    plan = RecordPlan((record.program, "exit", "200", "300", "10000"), record.output)
    outcome = Recording(plan).run()
    assert outcome.exit_code == 7 and record.left() == []
    with RunFileReader(record.output) as reader:
        data = reader.run_data()
    rows = _kernel_rows(record.output)
    assert data.info.state == "failed" and "llmprof is out of memory" in str(data.info)
    assert sum(p.kernels for p in data.processes) == rows and (rows == 0) == at_once
    reasons = [m.reason for m in data.missing if m.name == "kernels"]
    why = "the recording ended before anything of it was written: llmprof is out of memory"
    assert reasons == ([why] if at_once else [])


def test_a_cache_that_cannot_be_written_is_one_line(record: Record, tmp_path: Path) -> None:
    """As in a container with a read-only root: the recorder cannot be compiled anywhere."""
    (tmp_path / "file").write_text("a folder cannot be made in a file, not even by root")
    code, said = record.run("true", XDG_CACHE_HOME=str(tmp_path / "file"))
    if code == 0:
        pytest.skip("a prebuilt recorder: no cache is needed")
    assert code == 2 and said.count("\n") == 1 and "set XDG_CACHE_HOME" in said
    assert not record.output.exists()


def test_no_home_at_all(record: Record) -> None:
    """A user without an entry in the password file, and without HOME."""
    import pwd

    with pytest.raises(KeyError):
        pwd.getpwuid(54321)
    script = (
        "import os; from llmprof.recording.run import cache_folder;"
        "os.environ.pop('HOME', None); os.setuid(54321); print(cache_folder())"
    )
    environment = {k: v for k, v in record.environment.items() if k != "XDG_CACHE_HOME"}
    if os.geteuid():
        pytest.skip("only root may become another user")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "/.cache/llmprof", done.stderr


def test_a_setuid_program_runs_and_says_why_nothing_was_recorded(
    record: Record, built: recorder_build.Built, tmp_path: Path
) -> None:
    """The loader drops LD_LIBRARY_PATH for it, and the driver the injection: here the program does
    not even find its libraries, so it is copied as one that needs none."""
    cc = recorder_build.compiler()
    source, program = tmp_path / "s.c", tmp_path / "privileged"
    source.write_text(
        "#include <unistd.h>\nint main(void) { return geteuid() == getuid() ? 4 : 5; }"
    )
    subprocess.run([str(cc), "-o", program, source], check=True)
    if os.geteuid():
        pytest.skip("only root may give a program to another user")
    os.chown(program, 54321, 54321)
    program.chmod(0o4755)
    code = record.run(str(program))[0]
    if code == 4:
        pytest.skip("this file system has no setuid")
    assert code == 5
    (missing,) = [m for m in record.data().missing if m.name == "kernels"]
    assert "setuid" in missing.reason


def test_a_pid_that_comes_again_is_another_process(
    tmp_path: Path, built: recorder_build.Built, record: Record
) -> None:
    """The kernel gives numbers anew when they run out: two spools of one pid, of two programs."""
    if os.geteuid() or not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("the next pid can be set by root only")
    script = (
        f"import os, subprocess, sys\n"
        f"program = {record.program!r}\n"
        "first = subprocess.Popen([program, 'exit', '5', '4', '1000'])\n"
        "first.wait()\n"
        "for _ in range(50):\n"
        "    open('/proc/sys/kernel/ns_last_pid', 'w').write(str(first.pid - 1))\n"
        "    again = subprocess.Popen([program, 'exit', '5', '6', '1000'])\n"
        "    again.wait()\n"
        "    if again.pid == first.pid:\n"
        "        sys.exit(0)\n"
        "sys.exit(9)\n"
    )
    code, said = record.run(sys.executable, "-c", script)
    if code:
        pytest.skip(f"no pid came again ({code}): {said[-200:]}")
    data = record.data()
    reused = [p for p in data.processes if p.pid == data.processes[0].pid]
    assert len(reused) == 2 and reused[0].process != reused[1].process
    assert [kernels(data, e.label).kernels_per_step for e in data.engines[:1]] == [4]
    assert reused[-1].kernels == 30


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
