"""The worker's side against a libcupti of our own, built here, with CUPTI's threading."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llmprof.records import Unavailable
from llmprof.tracers.cupti import library as cupti_library
from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import Trace
from llmprof.tracers.cupti.layout import DRIVER, RUNTIME, Layout
from llmprof.tracers.cupti.resolve import read_c_string, unique_references
from llmprof.tracers.cupti.tracer import CuptiTracer, read_clocks

KNOWN, UNKNOWN = (130001, 216), (130900, 264)


@pytest.fixture(scope="session")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        pytest.skip("no C compiler to build the stand-in for libcupti")
    path = tmp_path_factory.mktemp("stub") / "libcupti.so.13"
    source = Path(__file__).parents[1] / "support" / "stubs" / "cupti_stub.c"
    command = [gcc, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread", "-o", str(path)]
    subprocess.run([*command, str(source)], check=True)
    return str(path)


@pytest.fixture
def stub(stub_path: str) -> ctypes.CDLL:
    lib = ctypes.CDLL(stub_path)
    lib.stub_reset.argtypes = [ctypes.c_uint32, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32]
    lib.stub_reset(*KNOWN, 0, 0)
    return lib


def traced(path: Path, round_id: int | None = None) -> tuple[Trace, int, int]:
    """(trace, kernels, API records)."""
    trace = Trace(path)
    found = list(trace.records(round_id))
    return trace, sum(len(f.kernels) for f in found), sum(len(f.api) for f in found)


@pytest.mark.parametrize(("level", "api"), [("kernels", 0), ("full", 2), ("all", 3)])
def test_only_the_rounds_are_recorded(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path, level: str, api: int
) -> None:
    tracer = CuptiTracer(tmp_path / "s", level, buffer_bytes=64 << 10, library=stub_path)  # type: ignore[arg-type]
    assert tracer.probe() is None and tracer.start() is None and tracer.missing == {}
    assert stub.stub_thread_id_type() == cupti_library.THREAD_ID_SYSTEM
    stub.stub_launch(5000)  # warm-up
    on = stub.stub_changes()
    for round_id, launches in ((1, 2000), (2, 70)):
        assert tracer.begin_round(round_id) is None
        stub.stub_launch(launches)
        facts = tracer.end_round(round_id)
        assert not isinstance(facts, Unavailable) and facts["dropped"] == 0
        assert facts["bytes"] == launches * (216 + 40 * api)
        stub.stub_launch(100)  # between rounds
    assert stub.stub_changes() == on  # kinds never change while an engine lives
    tracer.close()
    tracer.close()
    assert not stub.stub_enabled(10)

    trace, kernels, calls = traced(tmp_path / "s")
    assert (kernels, calls) == (2070, 2070 * api) and trace.lost == []
    assert traced(tmp_path / "s", 2)[1:] == (70, 70 * api)
    assert sorted(trace.kernel_names.values()) == ["_Z4copyPKfPf", "_Z4gemvPfS_", "_Z7softmaxPf"]
    if api:
        assert trace.api_names[RUNTIME, 211] == "cudaLaunchKernel_v7000"
        assert trace.api_names[DRIVER, 307] == "cuLaunchKernel"
    for found in trace.records(1):
        assert set(found.kernels["name_ptr"].tolist()) <= set(trace.kernel_names)
    assert [(m.round_id, m.where) for m in trace.marks] == [
        (1, "begin"),
        (1, "end"),
        (2, "begin"),
        (2, "end"),
    ]


def test_an_unknown_version_is_learnt_from_its_own_buffers(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path
) -> None:
    stub.stub_reset(*UNKNOWN, 0, 0)
    tracer = CuptiTracer(tmp_path / "s", "full", library=stub_path)
    assert tracer.start() is None
    tracer.begin_round(1)
    stub.stub_launch(300)
    assert not isinstance(tracer.end_round(1), Unavailable)
    tracer.close()
    trace, kernels, calls = traced(tmp_path / "s")
    assert isinstance(trace.layout, Layout) and trace.layout.source == "learnt"
    assert trace.layout.sizes == {3: 264, 10: 264, 4: 40, 5: 40}
    assert (kernels, calls, len(trace.kernel_names)) == (300, 600, 3)


def test_a_known_version_with_other_sizes_is_corrected(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path
) -> None:
    stub.stub_reset(130001, 224, 0, 0)
    tracer = CuptiTracer(tmp_path / "s", library=stub_path)
    tracer.start()
    tracer.begin_round(1)
    stub.stub_launch(100)
    tracer.end_round(1)
    tracer.close()
    trace, kernels, _ = traced(tmp_path / "s")
    assert isinstance(trace.layout, Layout) and trace.layout.sizes[10] == 224
    assert kernels == 100 and trace.lost == []


def test_records_of_another_shape_are_refused(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path
) -> None:
    stub.stub_reset(130900, 80, 0, 0)  # too short to hold what llmprof reads
    tracer = CuptiTracer(tmp_path / "s", library=stub_path)
    tracer.start()
    tracer.begin_round(1)
    stub.stub_launch(2)
    answer = tracer.end_round(1)
    tracer.close()
    assert isinstance(answer, Unavailable) and "CUPTI 130900 is not known" in answer.reason


def test_dropped_records_are_counted_and_those_of_the_warm_up_are_not(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path
) -> None:
    tracer = CuptiTracer(tmp_path / "s", library=stub_path)
    tracer.start()
    stub.stub_drop(1000)
    tracer.begin_round(1)
    stub.stub_drop(3)
    facts = tracer.end_round(1)
    tracer.close()
    assert not isinstance(facts, Unavailable) and facts["dropped"] == 3
    assert traced(tmp_path / "s")[0].lost == ["CUPTI dropped 3 records in round 1"]


@pytest.mark.parametrize(("code", "hint"), [(39, "one CUPTI client a process"), (35, "SYS_ADMIN")])
def test_a_refused_registration_says_who_and_what_to_do(
    stub: ctypes.CDLL,
    stub_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    hint: str,
) -> None:
    monkeypatch.setenv("CUDA_INJECTION64_PATH", "/opt/nsys/libToolsInjection64.so")
    stub.stub_reset(*KNOWN, code, 0)
    why = CuptiTracer(tmp_path / "s", library=stub_path).start()
    assert isinstance(why, Unavailable) and hint in why.reason
    assert ("/opt/nsys/libToolsInjection64.so" in why.reason) == (code == 39)
    assert stub.stub_changes() == 0


def test_a_refused_side_kind_leaves_the_kernels(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path
) -> None:
    stub.stub_reset(*KNOWN, 0, 27)
    tracer = CuptiTracer(tmp_path / "s", library=stub_path)
    assert tracer.start() is None
    assert tracer.missing == {"kind 2": "cuptiActivityEnable(2) failed: CUPTI_ERROR_STUB (27)"}
    tracer.close()


def test_a_full_disk_ends_the_trace_with_its_reason_and_not_the_engine(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = CuptiTracer(tmp_path / "s", buffer_bytes=8192, library=stub_path)
    tracer.start()
    tracer.begin_round(1)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "writev", full)
    stub.stub_launch(500)
    answer = tracer.end_round(1)
    assert isinstance(answer, Unavailable) and "No space left" in answer.reason
    monkeypatch.undo()
    tracer.begin_round(2)
    stub.stub_launch(50)
    assert not isinstance(tracer.end_round(2), Unavailable)
    tracer.close()
    assert traced(tmp_path / "s", 2)[1] == 50


def test_a_partial_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = spool.os.writev
    monkeypatch.setattr(
        spool.os, "writev", lambda fd, parts: real(fd, [b"".join(map(bytes, parts))[:21]])
    )
    writer = spool.SpoolWriter(tmp_path / "s")
    writer.write(spool.RECORDS, b"0123456789" * 10)
    writer.write(spool.RECORDS, b"x")
    writer.close()
    with spool.SpoolReader(tmp_path / "s") as reader:
        assert [reader.payload(f) for f in reader.frames()] == [b"0123456789" * 10, b"x"]
        assert reader.lost == ""


def test_a_wild_name_pointer_costs_a_name_not_the_process(
    stub: ctypes.CDLL, stub_path: str, tmp_path: Path
) -> None:
    tracer = CuptiTracer(tmp_path / "s", library=stub_path)
    tracer.start()
    tracer.begin_round(1)
    stub.stub_wild_name()
    stub.stub_launch(3)
    assert not isinstance(tracer.end_round(1), Unavailable)
    tracer.close()
    trace, kernels, _ = traced(tmp_path / "s")
    assert kernels == 4 and len(trace.kernel_names) == 3


def test_c_strings_across_pages_and_without_an_end() -> None:
    text = ctypes.create_string_buffer(b"k" * 10_000)
    assert read_c_string(ctypes.addressof(text)) == "k" * 10_000
    assert read_c_string(0) is None and read_c_string(8) is None and read_c_string(1 << 63) is None


def test_references_are_the_same_on_the_short_and_the_long_way(stub_path: str) -> None:
    from cupti_synthetic import CUDA_13_0, NAME_POINTERS, layout_of, make_buffer

    layout = layout_of(CUDA_13_0)
    kernels, ids = unique_references(make_buffer([10] * 9, layout), layout)
    assert (kernels, ids) == (set(NAME_POINTERS), set())
    mixed = make_buffer([5, 10, 4, 10] * 9, layout)
    assert unique_references(mixed[:-3], layout) == (kernels, {(5, 211), (4, 307)})
    assert unique_references(b"", layout) == (set(), set())


def test_the_clock_reading_is_tight_and_ordered(stub: ctypes.CDLL, stub_path: str) -> None:
    cupti = cupti_library.load(stub_path)
    assert isinstance(cupti, cupti_library.Cupti)
    reading = read_clocks(cupti)
    assert abs(reading.wall_ns - reading.cupti_ns) <= 2 * reading.error_ns + 1000
    assert reading.error_ns > 0


def test_missing_libraries_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = cupti_library.load(str(tmp_path / "none.so"))
    assert isinstance(missing, Unavailable) and "cannot be used" in missing.reason
    monkeypatch.setattr(cupti_library, "driver_release", lambda: 13000)
    monkeypatch.setattr(cupti_library, "candidates", list)
    nothing = cupti_library.load()
    assert isinstance(nothing, Unavailable) and "nvidia-cuda-cupti" in nothing.reason
    monkeypatch.setattr(cupti_library, "driver_release", lambda: 12080)
    monkeypatch.setattr(cupti_library, "candidates", lambda: ["/x/libcupti.so.13"])
    newer = cupti_library.load()
    assert isinstance(newer, Unavailable) and "needs a driver for CUDA 13" in newer.reason


def test_an_environments_wheel_comes_before_the_toolkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, name in (("nvidia/cuda_cupti/lib", "12"), ("nvidia/cu13/lib", "13")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"libcupti.so.{name}").touch()
    monkeypatch.setattr(cupti_library, "mapped", lambda _: [])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cupti_library.candidates()[:2] == [
        str(tmp_path / "nvidia/cu13/lib/libcupti.so.13"),
        str(tmp_path / "nvidia/cuda_cupti/lib/libcupti.so.12"),
    ]


def test_an_interpreter_that_ends_while_tracing_ends_cleanly(
    stub_path: str, tmp_path: Path
) -> None:
    program = f"""
        import ctypes, threading
        from pathlib import Path
        from llmprof.tracers.cupti.tracer import CuptiTracer
        tracer = CuptiTracer(Path({str(tmp_path / "s")!r}), "full", 8192, {stub_path!r})
        assert tracer.start() is None
        stub = ctypes.CDLL({stub_path!r})
        tracer.begin_round(1)
        stub.stub_launch(1000)
        del tracer
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    trace, kernels, _ = traced(tmp_path / "s")
    assert kernels > 900 and isinstance(trace.layout, Layout)  # all but the unflushed last buffer
    assert isinstance(trace.clock(1), Unavailable)


def test_the_worker_side_needs_no_numpy(stub_path: str) -> None:
    check = "import sys, llmprof.tracers.cupti.tracer; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_a_real_cupti_walks_synthetic_buffers_with_the_tables_sizes() -> None:
    """Needs the library alone, no GPU: NVIDIA's own walk confirms the sizes of its version."""
    from cupti_synthetic import FIELDS, make_buffer

    from llmprof.tracers.cupti.layout import known_layout

    real = [p for p in cupti_library.candidates() if Path(p).exists() and "/stub" not in p]
    if not real:
        pytest.skip("no libcupti is installed here")
    cupti = cupti_library.load(real[0])
    assert isinstance(cupti, cupti_library.Cupti)
    layout = known_layout(cupti.version)
    if layout is None:
        pytest.skip(f"CUPTI {cupti.version} is not in the table: it would be learnt")
    kinds = [kind for kind in FIELDS if kind != 3]  # kind 3 is the old, serialising kernel kind
    sizes = cupti.record_sizes(make_buffer(kinds * 20, layout), 1000)
    assert sizes == {kind: layout.sizes[kind] for kind in kinds}
