"""What is kept: kill -9, a full disk, no memory, the clock set back, two of us at once.

By command: run, record, open. Cells that other tests hold stand in ``docs/reliability.md``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kineto_factory
import pytest
import recorder_build
from waiting import until

from llmprof.analysis.view.opening import open_run
from llmprof.runfile.reader import RunFileReader

SUPPORT = Path(recorder_build.__file__).parent
RUN = [
    "--headless", "--json", "--engine", "fake:step_us=2000", "--prompt-len", "4",
    "--decode-len", "20", "--rounds", "8", "--traced-steps", "0",
]  # fmt: skip
Environment = dict[str, str]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> recorder_build.Built:
    if recorder_build.compiler() is None:
        pytest.skip("no C compiler to build the recorder with")
    return recorder_build.make(tmp_path_factory.mktemp("stubs"), ("-g",))


@pytest.fixture(scope="session")
def clock_back(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Variables under which the wall clock jumps back an hour, half a second into a process."""
    cc = recorder_build.compiler()
    if cc is None:
        pytest.skip("no C compiler for a library that sets the clock back")
    library = tmp_path_factory.mktemp("clock") / "clock_back.so"
    source = SUPPORT / "clock_back.c"
    subprocess.run([cc, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "LLMPROF_CLOCK_MS": "500"}


@pytest.fixture
def recording(built: recorder_build.Built, clean_env: Environment) -> Environment:
    # One cache for all of them: the recorder is compiled once.
    places = {"LD_LIBRARY_PATH": str(built.folder), "XDG_CACHE_HOME": str(built.folder / "cache")}
    return {**clean_env, **places}


def start(environment: Environment, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmprof", *arguments],
        env=environment, cwd=folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=120)
    assert "Traceback" not in said, said
    return process.returncode, out, said


def no_more_memory(pid: int) -> None:
    """From now on the process cannot have one more page than it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


# -- run -----------------------------------------------------------------------------------------


def test_run_with_the_clock_set_back(
    tmp_path: Path, clean_env: Environment, clock_back: Environment
) -> None:
    """Every time of a run is CLOCK_MONOTONIC; the date is read once, at its start."""
    before = time.time()
    code, out, said = ended(start({**clean_env, **clock_back}, tmp_path, *RUN, "-o", "r.sqlite"))
    assert code == 0, said
    (engine,) = json.loads(out)["engines"]
    assert len(engine["tok_s"]["rounds"]) == 8 and 0 < engine["tok_s"]["median"] <= 500
    data = open_run(tmp_path / "r.sqlite")
    since = data.info.t0_utc_ns / 1e9 - before
    assert data.info.state == "finished" and (-1 < since < 600 or -3601 < since < -3000)
    for one in data.rounds:
        times = [one.start_ns, one.prefill_start_ns, *one.stamps_ns, one.end_ns]
        assert times == sorted(times)


def test_run_out_of_memory_in_an_engine(tmp_path: Path, clean_env: Environment) -> None:
    """A real failed allocation, in the tenth step of one of two engines."""
    both = [*RUN, "--engine", "fake:hog_at=30", "-o", "r.sqlite"]
    code, out, said = ended(start(clean_env, tmp_path, *both))
    assert code == 1, said
    good, bad = json.loads(out)["engines"]
    assert (good["state"], bad["state"]) == ("finished", "failed")
    assert bad["failure"]["kind"] == "oom" and "out of memory" in said


def test_run_out_of_memory_in_llmprof_itself(tmp_path: Path, clean_env: Environment) -> None:
    """What was written stays; at worst the run says that it never ended."""
    arguments = [*RUN[:-4], "--rounds", "2000", "--traced-steps", "0", "-o", "r.sqlite"]
    process = start(clean_env, tmp_path, *arguments)
    file = tmp_path / "r.sqlite"
    until(lambda: _rounds(file) >= 2)
    no_more_memory(process.pid)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, _, said = ended(process)
    assert code in (3, 130), said
    assert _rounds(file) >= 2


def _rounds(file: Path) -> int:
    from llmprof.errors import RunFileError

    try:
        with RunFileReader(file) as reader:
            return len(reader.run_data().rounds)
    except RunFileError:
        return 0  # not there yet, or being written


# -- record --------------------------------------------------------------------------------------


def test_record_with_the_clock_set_back(
    tmp_path: Path, built: recorder_build.Built, recording: Environment, clock_back: Environment
) -> None:
    arguments = ["record", "-o", "r.sqlite", "--", str(built.program), "exit", "60", "10", "20000"]
    code, _, said = ended(start({**recording, **clock_back}, tmp_path, *arguments))
    assert code == 7, said
    data = open_run(tmp_path / "r.sqlite")
    (process,) = data.processes
    assert (process.kernels, process.ranges) == (600, 60) and process.ended
    (traced,) = data.rounds
    assert traced.steps == 60 and list(traced.stamps_ns) == sorted(traced.stamps_ns)
    assert 1 < (process.last_ns - process.first_ns) / 1e9 < 60


def test_record_out_of_memory(
    tmp_path: Path, built: recorder_build.Built, recording: Environment
) -> None:
    """The recording ends, and says so; the program goes on to its own end."""
    command = [str(built.program), "exit", "120", "200", "10000"]
    process = start(recording, tmp_path, "record", "-o", "r.sqlite", "--", *command)
    until(lambda: list(tmp_path.glob(".llmprof-record-*/*.spool")))
    time.sleep(0.3)
    no_more_memory(process.pid)
    code, _, said = ended(process)
    assert code in (7, 8), said  # 8: CUPTI was given back
    # Where it had enough already, nothing was lost and nothing has to be said.
    with RunFileReader(tmp_path / "r.sqlite") as reader:
        state = reader.run_data().info.state
    gone_without = state == "failed" and "the recording ends here, the program goes on" in said
    assert gone_without or state == "finished"
    assert [path.name for path in tmp_path.glob(".r.sqlite*")] == []


def test_a_recorded_program_out_of_memory(
    tmp_path: Path, built: recorder_build.Built, recording: Environment
) -> None:
    script = (
        "import ctypes, resource\n"
        "cuda, cupti = ctypes.CDLL('libcuda.so.1'), ctypes.CDLL('libcupti.so.13')\n"
        "cuda.cuInit(0)\n"
        "for i in range(50): cupti.stub_launch(10)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "hog = bytearray(1 << 34)\n"
    )
    process = start(
        recording, tmp_path, "record", "-o", "r.sqlite", "--", sys.executable, "-c", script
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "MemoryError" in said  # the program's own words
    (recorded,) = open_run(tmp_path / "r.sqlite").processes
    assert recorded.kernels == 500


def test_two_recordings_at_once(
    tmp_path: Path, built: recorder_build.Built, recording: Environment
) -> None:
    """Into files of their own both are whole; into one file, one is made and one is refused."""
    program = [str(built.program), "exit", "20", "10", "10000"]
    names = ("a", "b", "same", "same")
    started = [
        start(recording, tmp_path, "record", "-o", f"{name}.sqlite", "--", *program)
        for name in names
    ]
    results = [ended(process) for process in started]
    assert [code for code, _, _ in results[:2]] == [7, 7]
    assert sorted(code for code, _, _ in results[2:]) == [2, 7], results
    assert any("same.sqlite: exists already" in said for _, _, said in results[2:])
    for name in ("a", "b", "same"):
        assert [p.kernels for p in open_run(tmp_path / f"{name}.sqlite").processes] == [200]


# -- open ----------------------------------------------------------------------------------------


def trace(path: Path, steps: int = 20, padding: int = 0) -> Path:
    """Of torch.profiler, with one operator's name as long as wanted."""
    events = kineto_factory.steps(steps)
    if padding:
        long = kineto_factory.event("cpu_op", "x" * padding, kineto_factory.BASE_US, 1.0, 77, 77)
        events.append(long)
    return kineto_factory.write(path, kineto_factory.document(events))


def opening(environment: Environment, folder: Path, file: Path) -> subprocess.Popen[str]:
    return start(environment, folder, "--headless", "--json", "--from", str(file))


def cached(folder: Path) -> list[Path]:
    return list((folder / "cache" / "llmprof" / "traces").glob("*"))


def kernels_of(out: str) -> int:
    return int(json.loads(out)["engines"][0]["tracing"]["file_kernels"])


def test_open_killed_in_the_middle(tmp_path: Path, clean_env: Environment) -> None:
    file = trace(tmp_path / "t.json", 4000)
    process = opening(clean_env, tmp_path, file)
    until(lambda: [p for p in cached(tmp_path) if p.suffix == ".part"])
    process.kill()
    process.communicate()
    (left,) = cached(tmp_path)
    assert left.suffix == ".part"
    os.utime(left, (0, 0))  # an hour and more ago
    code, out, said = ended(opening(clean_env, tmp_path, file))
    assert code == 0 and kernels_of(out) == 12_000, said
    assert [p.suffix for p in cached(tmp_path)] == [".sqlite"]


def test_open_with_a_full_disk(tmp_path: Path, clean_env: Environment) -> None:
    file = trace(tmp_path / "t.json", 4000)
    with small_disk(tmp_path / "small", "600k") as disk:
        code, out, said = ended(opening({**clean_env, "XDG_CACHE_HOME": str(disk)}, tmp_path, file))
        assert code == 2 and out == "" and said.count("\n") == 1, said
        assert "disk full" in said or "No space left" in said
        assert not [p for p in disk.rglob("*") if p.is_file()]


def test_open_out_of_memory(tmp_path: Path, clean_env: Environment) -> None:
    """One event of 60 MB, and 60 MiB to read it with."""
    file = trace(tmp_path / "t.json", 3, padding=60_000_000)
    script = (
        "import resource, sys\n"
        "from llmprof.cli import main\n"
        "import llmprof.traces.kineto.convert, llmprof.exports.json.report, numpy\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (60 << 20),) * 2)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "--headless", "--json", "--from", str(file)]
    done = subprocess.run(command, env=clean_env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert re.fullmatch(r"llmprof: out of memory[^\n]*\n", done.stderr)
    assert cached(tmp_path) == []


def test_open_with_the_clock_set_back(
    tmp_path: Path, clean_env: Environment, clock_back: Environment
) -> None:
    """A file from the future is read; a changed source is converted anew, whatever its date."""
    file = trace(tmp_path / "t.json", 20)
    assert kernels_of(ended(opening(clean_env, tmp_path, file))[1]) == 60
    early = {**clean_env, **clock_back, "LLMPROF_CLOCK_MS": "0"}
    code, out, _ = ended(opening(early, tmp_path, file))
    assert code == 0 and kernels_of(out) == 60 and len(cached(tmp_path)) == 1
    trace(file, 21)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    code, out, _ = ended(opening(early, tmp_path, file))
    assert code == 0 and kernels_of(out) == 63


def test_two_open_one_trace(tmp_path: Path, clean_env: Environment) -> None:
    file = trace(tmp_path / "t.json", 1000)
    started = [opening(clean_env, tmp_path, file) for _ in range(2)]
    results = [ended(process) for process in started]
    assert [code for code, _, _ in results] == [0, 0]
    assert {kernels_of(out) for _, out, _ in results} == {3000}
    assert [p.suffix for p in cached(tmp_path)] == [".sqlite"]
