"""What can go wrong with ``llmprof record``: the program goes on, and the cause is the true one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import recorder_build
from record_command import Record, kernels

from llmprof.recording.plan import RecordPlan
from llmprof.recording.run import Recording
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.writer import RunFileWriter


def test_another_profiler_holds_cupti(record: Record) -> None:
    code, said = record.run(record.program, "exit", "5", LLMPROF_STUB_SUBSCRIBED="1")
    assert code == 7 and "another profiler holds CUPTI" in said
    assert any("cuptiSubscribe (39)" in m.reason for m in record.data().missing)


def test_compile_workers_are_no_engines(record: Record) -> None:
    """They load CUDA and run nothing."""
    workers = f"{record.program} exit 0 0 0; " * 5
    assert record.run("sh", "-c", workers + f"{record.program} exit 3 2 30000")[0] == 7
    data = record.data()
    assert len(data.engines) == 1 and len(data.processes) == 1


def test_five_hundred_processes(record: Record) -> None:
    """Ten launchers of fifty, most of which load CUDA and launch nothing; llmprof may not even
    have a file open for each."""
    one = f"for i in $(seq 40); do {record.program} return 0 0 0 & done; "
    one += f"for i in $(seq 10); do {record.program} return 3 2 1000 & done; wait"
    script = f"for k in $(seq 10); do sh -c '{one}' & done; wait; exit 3"
    process = record.start("sh", "-c", script)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (128, 128))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3 and record.left() == [], said
    data = record.data()
    assert len(data.engines) == 100 and len({e.label for e in data.engines}) == 100
    assert len(data.processes) == 100 and {p.kernels for p in data.processes} == {6}


def _why_nothing(record: Record) -> str:
    (missing,) = [m for m in record.data().missing if m.name == "kernels"]
    assert "\n" not in missing.reason
    return missing.reason


ENDS_WITH_4 = "int main(void) { return 4; }"


def _compiled(record: Record, source: str, name: str, *compiler: str) -> str:
    """Skips where that cannot be compiled here."""
    path, program = record.folder / "source.c", record.folder.parent / name
    path.write_text(source)
    done = subprocess.run([*compiler, "-o", program, path], capture_output=True, text=True)
    path.unlink()
    if done.returncode:
        pytest.skip(f"cannot be compiled here: {done.stderr[:200]}")
    return str(program)


def test_a_static_program_is_not_recorded_and_says_so(record: Record) -> None:
    cc = recorder_build.compiler() or "cc"
    program = _compiled(record, ENDS_WITH_4, f"static-{record.folder.name}", cc, "-static")
    assert record.run(program)[0] == 4
    assert f"{Path(program).name} is linked statically" in _why_nothing(record)


LOADS_WHAT_IT_IS_TOLD = """
#include <dlfcn.h>
#include <stdlib.h>
int main(void) {
  const char *path = getenv("NVTX_INJECTION64_PATH");
  return path && !dlopen(path, RTLD_LAZY) ? 6 : 5;
}
"""


@pytest.mark.parametrize("static", [True, False])
def test_a_musl_program_runs_and_says_why_nothing_was_recorded(
    record: Record, static: bool
) -> None:
    """NVTX in it tries to load the recorder, which needs glibc: musl refuses, it goes on."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("no musl-gcc")
    kind = ("-static",) if static else ("-ldl",)
    name = f"musl-{record.folder.name}"
    program = _compiled(record, LOADS_WHAT_IT_IS_TOLD, name, "musl-gcc", *kind)
    code, said = record.run(program)
    assert code == 6 and record.left() == []
    reason = _why_nothing(record)
    assert f"{name} is linked statically" in reason if static else f"{name} runs on musl" in reason
    assert said.count("\n") == 2 and "no kernels: " in said  # and the run file


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
    assert "Traceback" not in done.stderr and done.returncode in (7, 8), done.stderr
    assert "the program go" in done.stderr or "went on unrecorded" in done.stderr
    assert done.stdout.split() == ["run.sqlite"]
    with RunFileReader(copy) as reader:
        data = reader.run_data()
    assert data.info.source == "recorded"


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
    assert outcome.exit_code == 8 and record.left() == []  # 8: CUPTI was given back
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


def _needs_root() -> None:
    if os.geteuid():
        pytest.skip("only root may become another user, or give files away")


def test_a_setuid_program_runs_and_says_why_nothing_was_recorded(record: Record) -> None:
    _needs_root()
    source = "#include <unistd.h>\nint main(void) { return geteuid() == getuid() ? 4 : 5; }"
    cc = recorder_build.compiler() or "cc"
    program = Path(_compiled(record, source, f"setuid-{record.folder.name}", cc))
    os.chown(program, 54321, 54321)
    program.chmod(0o4755)
    code = record.run(str(program))[0]
    if code == 4:
        pytest.skip("this file system has no setuid")
    assert code == 5 and f"{program.name} runs setuid" in _why_nothing(record)


@pytest.fixture
def readable(built: recorder_build.Built) -> Iterator[Record]:
    """A program, its libraries and its recorder that other users can read, unlike pytest's
    folders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in (built.program, built.recorder, *built.folder.glob("*.so.*")):
            shutil.copy(file, folder)
        (folder / "out").mkdir()
        program, recorder = folder / built.program.name, folder / built.recorder.name
        copies = recorder_build.Built(folder, recorder, program, built.payloads)
        yield Record(copies, folder / "cache", folder / "out")


def test_a_setuid_program_that_loads_the_recorder_writes_nothing(readable: Record) -> None:
    """Its libraries are found without LD_LIBRARY_PATH, and its driver loads what it is told; not
    even where it could write would it do so."""
    _needs_root()
    folder = Path(readable.program).parent
    spools = folder / "spools"
    spools.mkdir()
    spools.chmod(0o777)
    program, source = folder / "privileged", recorder_build.SUPPORT / "recorded_program.c"
    libraries = [str(folder / name) for name in ("libcuda.so.1", "libcupti.so.13")]
    command = ["-o", program, source, *libraries, "-ldl", f"-Wl,-rpath,{folder}"]
    subprocess.run([recorder_build.compiler() or "cc", "-std=gnu11", *command], check=True)
    direct = readable.built.environment(spools)
    assert subprocess.run([program, "exit", "5", "4", "0"], env=direct).returncode == 7
    assert len(list(spools.iterdir())) == 1
    os.chown(program, 54321, 54321)
    program.chmod(0o4755)
    assert subprocess.run([program, "exit", "5", "4", "0"], env=direct).returncode == 7
    assert len(list(spools.iterdir())) == 1
    assert readable.run(str(program), "exit", "5", "4", "0")[0] == 7
    assert "runs setuid" in _why_nothing(readable) and readable.left() == []


def test_a_program_that_becomes_another_user_goes_on_unrecorded(readable: Record) -> None:
    """It may not write beside the run file."""
    _needs_root()
    words = [readable.program, "exit", "5", "4", "0"]
    script = f"import os; os.setuid(54321); os.execv({words[0]!r}, {words!r})"
    assert readable.run(sys.executable, "-c", script)[0] == 7
    assert "as another user" in _why_nothing(readable) and readable.left() == []


def test_an_output_folder_that_cannot_be_written_is_one_line(
    record: Record, tmp_path: Path
) -> None:
    """As in a container that is read-only: nothing was started."""
    script = f'mount -t tmpfs -o ro tmpfs {tmp_path} && exec "$@"'
    unshare = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("no mounts of one's own here")
    command = [sys.executable, "-m", "llmprof", "record", "-o", str(record.output), "--"]
    done = subprocess.run(
        [*unshare, *command, "touch", "/tmp/never"], env=record.environment, cwd="/",
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert str(tmp_path) in done.stderr and "Read-only" in done.stderr


def test_a_program_that_forks_after_it_used_cuda(record: Record) -> None:
    """CUDA is the parent's alone: the child is no engine, and leaves its parent's file alone."""
    assert record.run(record.program, "fork", "20", "5", "500")[0] == 0
    data = record.data()
    assert [p.kernels for p in data.processes if p.kernels] == [200]
    assert len(data.engines) == 1 and record.left() == []


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
