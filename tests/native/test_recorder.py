"""The injected recorder in real processes, over stub libraries, with ASan and UBSan in it."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import recorder_build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder_spools import frames, kernels, only, run
from waiting import until

from llmprof.native import build
from llmprof.recording.control import ControlPage
from llmprof.recording.spooled.ranges import RangeReader
from llmprof.tracers.cupti import library, spool


@pytest.mark.parametrize(
    ("end", "code"),
    [("return", 0), ("exit", 7), ("term", -signal.SIGTERM)],
)
def test_an_end_that_can_be_heard_loses_nothing(
    built: recorder_build.Built, tmp_path: Path, end: str, code: int
) -> None:
    assert run(built, tmp_path, end, "60", "50", "500").returncode == code
    assert kernels(only(tmp_path)) == (3000, 6000)
    marks = [value for kind, value in frames(only(tmp_path)) if kind == spool.MARK]
    assert [m["where"] for m in marks if m] == ["on", "end"]


def test_what_a_program_attaches_to_its_ranges_is_kept(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    environment = built.environment(tmp_path)
    done = subprocess.run(
        [built.payloads, "3"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    with spool.SpoolReader(only(tmp_path)) as reader:
        ranges = RangeReader(1)
        ended = [
            event
            for frame in reader.frames()
            if frame.kind == spool.NVTX
            for event in ranges.read(reader.payload(frame))
        ]
    assert ranges.open == 0  # a range that ends with a payload has an end
    assert [(event.domain, event.text) for event in ended] == [
        ("NCCL", "ncclCommInitRank"),
        *[("NCCL", "ncclAllReduce")] * 3,
    ]
    one = {"NCCL communicator ID": 0xABCDEF0123456789}
    assert json.loads(ended[0].values) == {
        **one, "No. of ranks": 4, "Rank": 2, "CUDA device": 2,
    }  # fmt: skip
    assert [json.loads(event.values) for event in ended[1:]] == [
        {**one, "Message size [bytes]": size} for size in (8192, 16384, 24576)
    ]


@pytest.mark.parametrize(
    ("end", "code"),
    [("_exit", 3), ("abort", -6), ("segv", -11), ("kill", -9)],
)
def test_a_sudden_end_leaves_whole_frames(
    built: recorder_build.Built, tmp_path: Path, end: str, code: int
) -> None:
    assert run(built, tmp_path, end, "400", "20", "1000").returncode == code
    found, calls = kernels(only(tmp_path))
    assert 0 < found <= 8000 and calls == 2 * found


def test_exec_is_a_second_image_of_the_same_process(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    again = [str(built.program), "exit", "10", "5", "0"]
    assert run(built, tmp_path, "exec", "50", "5", "1000", *again).returncode == 7
    first, second = sorted(tmp_path.glob("*.spool"), key=lambda p: int(p.stem.split("-")[1]))
    assert first.name.split("-")[0] == second.name.split("-")[0]
    assert kernels(second) == (50, 100)
    assert kernels(first)[0] > 0


def test_a_child_after_fork_writes_nothing_into_its_parents_spool(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    assert run(built, tmp_path, "fork", "20", "50", "500").returncode == 0
    counts = sorted(kernels(path)[0] for path in tmp_path.glob("*.spool"))
    assert counts == [0, 2000]  # the child's has its range only


def test_a_child_that_uses_cuda_after_fork_has_a_spool(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    assert run(built, tmp_path, "fork-cuda", "20", "50", "500").returncode == 0
    counts = sorted(kernels(path)[0] for path in tmp_path.glob("*.spool"))
    assert counts == [0, 1000]


def test_another_subscriber_first(built: recorder_build.Built, tmp_path: Path) -> None:
    done = run(built, tmp_path, "exit", "5", LLMPROF_STUB_SUBSCRIBED="1")
    assert done.returncode == 7
    (error,) = [value for kind, value in frames(only(tmp_path)) if kind == spool.ERROR]
    assert error is not None and error["code"] == 39
    assert error["what"] == "cuptiSubscribe" and "another profiler" in str(error["advice"])
    assert kernels(only(tmp_path)) == (0, 0)


@pytest.mark.parametrize(("level", "calls"), [("kernels", 0), ("full", 2), ("all", 3)])
def test_levels(built: recorder_build.Built, tmp_path: Path, level: str, calls: int) -> None:
    run(built, tmp_path, "exit", "10", "10", "0", LLMPROF_RECORD_TRACE=level)
    assert kernels(only(tmp_path)) == (100, 100 * calls)


def test_steps_only_has_no_cupti(built: recorder_build.Built, tmp_path: Path) -> None:
    run(built, tmp_path, "exit", "10", "10", "0", LLMPROF_RECORD_TRACE="steps")
    kinds = Counter(kind for kind, _ in frames(only(tmp_path)))
    assert kinds[spool.NVTX] and not kinds[spool.LAYOUT] and not kinds[spool.RECORDS]


def test_without_a_folder_or_a_place_in_it_the_program_runs(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    assert run(built, tmp_path / "missing", "exit", "5").returncode == 7
    assert run(built, tmp_path, "exit", "5", LLMPROF_RECORD_DIR="").returncode == 7
    assert not list(tmp_path.iterdir())


def test_ranges_and_facts(built: recorder_build.Built, tmp_path: Path) -> None:
    run(built, tmp_path, "exit", "10", "10", "0", RANK="3")
    found = frames(only(tmp_path))
    facts: dict[str, object] = {}
    for kind, value in found:
        if kind == spool.PROCESS and value:
            facts |= value
    assert facts["RANK"] == "3" and str(facts["exe"]).endswith("recorded_program")
    assert str(facts["library"]).endswith("libcupti.so.13 (loaded already)")
    (devices,) = [value for kind, value in found if kind == spool.DEVICES]
    assert devices is not None
    assert devices["devices"][1] == {  # type: ignore[index]
        "ordinal": 1, "uuid": "a1" * 16, "pci_bus_id": "0000:02:00.0", "name": "Stub GPU 1"
    }  # fmt: skip


def test_a_limit_on_file_size_ends_the_spool_not_the_program(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    page = ControlPage(tmp_path, 3)
    done = subprocess.run(
        [built.program, "exit", "100", "100", "500"],
        env=built.environment(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        timeout=60,
    )
    assert done.returncode == 7  # not SIGXFSZ
    lost = page.lost()
    assert lost is not None and (lost.count, lost.errno) == (1, errno.EFBIG)
    assert 0 < lost.when_ns < time.monotonic_ns()
    page.close()
    # None at all where the machine is so loaded that the first buffer was full.
    assert kernels(only(tmp_path))[0] < 10_000


def test_nobody_to_record_for_leaves_nothing(built: recorder_build.Built, tmp_path: Path) -> None:
    """A killed llmprof holds no lock any more."""
    spools = tmp_path / "spools"
    spools.mkdir()
    ControlPage(spools, 3).close()
    process = subprocess.Popen([built.program, "wait"], env=built.environment(spools))
    try:
        until(lambda: not spools.exists())
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_both_recorders_choose_the_same_calls() -> None:
    """The worker's (Python) and the injected one (C)."""
    text = (build.SOURCES / "calls.c").read_text()
    for name, calls in (
        ("RUNTIME_CALLS", library.RUNTIME_CALLS),
        ("DRIVER_CALLS", library.DRIVER_CALLS),
    ):
        match = re.search(rf"{name}\[\] = \{{([^}}]*)\}}", text)
        assert match is not None
        assert tuple(map(int, match[1].split(","))) == calls


@pytest.fixture(scope="session")
def frame_writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cc = recorder_build.compiler()
    if cc is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("frames") / "frame_writer"
    source = recorder_build.SUPPORT / "frame_writer.c"
    command = [cc, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *recorder_build.SANITIZE, "-o"]
    subprocess.run([*command, program, source, build.SOURCES / "spool.c"], check=True)
    return program


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.tuples(st.booleans(), st.binary(max_size=300) | st.text().map(str.encode)),
        max_size=12,
    )
)
def test_frames_hold_any_bytes(
    frame_writer: Path, tmp_path: Path, parts: list[tuple[bool, bytes]]
) -> None:
    path = tmp_path / f"{time.monotonic_ns()}.spool"
    script = b"".join(struct.pack("<BI", quoted, len(data)) + data for quoted, data in parts)
    done = subprocess.run([frame_writer, path], input=script, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
    with spool.SpoolReader(path) as reader:
        found = list(reader.frames())
        assert reader.lost == "" and len(found) == len(parts)
        for frame, (quoted, data) in zip(found, parts, strict=True):
            if not quoted:
                assert reader.payload(frame) == data
                continue
            value = json.loads(reader.payload(frame))
            assert value["length"] == len(data)
            try:
                assert value["text"] == data.decode()
            except UnicodeDecodeError:
                assert "�" in value["text"]
    path.unlink()


def test_compiled_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SOURCES", _copy_of_sources(tmp_path / "package"))
    first = build.library(tmp_path / "cache")
    before = first.stat()
    assert build.library(tmp_path / "cache") == first and first.stat() == before
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert build.library(tmp_path / "cache") == first  # no compiler needed any more
    with pytest.raises(build.BuildError, match=r"no prebuilt recorder for .* and no C compiler"):
        build.library(tmp_path / "other")


def test_prebuilt_comes_first_and_a_broken_source_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy_of_sources(tmp_path / "package")
    monkeypatch.setattr(build, "SOURCES", folder)
    (folder / "spool.c").write_text("int broken(")
    with pytest.raises(build.BuildError, match=r"cannot compile the recorder: .*spool\.c") as why:
        build.library(tmp_path / "cache")
    assert "\n" not in str(why.value)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    prebuilt = folder / "prebuilt" / os.uname().machine / build.NAME
    prebuilt.parent.mkdir(parents=True)
    prebuilt.write_bytes(b"")
    assert build.library(tmp_path / "cache") == prebuilt


def _copy_of_sources(folder: Path) -> Path:
    folder.mkdir()
    for path in [*build.SOURCES.glob("*.c"), *build.SOURCES.glob("*.h")]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_build_runs_without_the_package(tmp_path: Path) -> None:
    """The wheel's build calls the file before llmprof can be imported."""
    done = subprocess.run(
        [sys.executable, "-I", build.__file__, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0 or "ziglang is not installed" in done.stderr, done.stderr
