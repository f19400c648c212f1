"""Captures that made wrong numbers: what they hold is read, or named, and never just dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from capture_factory import H100, MS, PID, Capture, global_pid
from opened import Opened

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.host.causes import GapCauses
from llmprof.exports.text.table import render
from llmprof.records import Unavailable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "capture.sqlite"


def whole_graphs(made: Capture, sampler: bool = True, ranges: bool = True) -> None:
    """Steps of 10 ms: a graph of 9.4 ms in one row, and 40 us of sampling outside of it."""
    for i in range(20):
        start = 100 * MS + i * 10 * MS
        if ranges:
            made.range(start, start + 9_900_000, f"decode {i}")
        launch = made.call(start + 50_000, start + 80_000, "cudaGraphLaunch_v10000")
        made.graph(start + 100_000, start + 9_500_000, correlation=launch)
        if sampler:
            launch = made.call(start + 120_000, start + 125_000)
            made.kernel(
                start + 9_520_000, start + 9_560_000, "void argmax(float*)", correlation=launch
            )


# -- work of every table -------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "busy"), [(True, 9.44), (False, 9.4)])
def test_whole_graphs_are_work(file: Path, sampler: bool, busy: float) -> None:
    with Capture(file) as made:
        made.process()
        made.gpu()
        whole_graphs(made, sampler)
    opened = Opened(file)
    assert opened.busy_idle == (busy, round(10 - busy, 6))
    info = opened.data.engines[0].info
    assert info is not None and info.device == "cuda:0"
    why = opened.kernels.kernels_per_step
    assert isinstance(why, Unavailable) and "--cuda-graph-trace=node" in why.reason
    assert {c.category for c in opened.kernels.categories} >= {"CUDA graph"}
    causes = opened.first.causes
    assert isinstance(causes, GapCauses) and "launch-bound" not in causes.verdict
    opened.document()


def test_whole_graphs_without_ranges_have_totals_and_a_device(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        whole_graphs(made, ranges=False)
    opened = Opened(file)
    info = opened.data.engines[0].info
    assert info is not None and info.device == "cuda:0"
    # The first of the 20 replays is where the steps begin; the other 19 are steps.
    assert opened.kernels.busy_ns == 19 * 9_440_000


def test_a_whole_graph_is_not_compared_by_category(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        whole_graphs(made)
        made.process(4002, "eager-server")
        made.eager_steps(wall=20 * MS, busy=0.5, pid=4002, device=1)
    opened = Opened(file)
    fall = opened.trace.falls[0].traced
    assert not isinstance(fall, Unavailable)
    assert {p.category for p in fall.parts} == {"all GPU work", "idle"}
    assert sum(p.delta_ns for p in fall.parts) == fall.delta_ns
    assert "traced as a whole" in fall.note


def test_stream_work_of_an_unknown_table_is_read_and_called_by_its_name(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps(each=1, busy=0.4)
        for i in range(20):
            at = 100 * MS + i * 10 * MS + 5 * MS
            made.work("CUPTI_ACTIVITY_KIND_MEM_DECOMPRESS", at, at + 2 * MS)
    opened = Opened(file)
    assert opened.busy_idle[0] == pytest.approx(4 - 0.02 + 2, abs=0.05)
    assert "[mem decompress]" in {k.short_name for k in opened.kernels.kernels} | {
        k.name for k in opened.kernels.kernels
    }


def test_unified_memory_and_peer_copies_are_work(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps(each=1, busy=0.1)
        for i in range(20):
            at = 100 * MS + i * 10 * MS + 5 * MS
            for nth, kind in enumerate((10, 11, 12)):
                made.work(
                    "CUPTI_ACTIVITY_KIND_MEMCPY", at + nth * MS, at + nth * MS + 500_000,
                    bytes=4096, copyKind=kind,
                )  # fmt: skip
    names = {k.name for k in Opened(file).kernels.kernels}
    assert {
        "[memcpy Peer-to-Peer]",
        "[memcpy Unified Host-to-Device]",
        "[memcpy Unified Device-to-Host]",
    } <= names


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("VULKAN_WORKLOAD", {"gpu": 0, "globalTid": global_pid(PID) | 7}),
        ("CUPTI_ACTIVITY_KIND_NCCL", {"deviceId": 0, "globalPid": global_pid(PID)}),
        ("CUPTI_ACTIVITY_KIND_KERNEL_V3", {"device": 0}),
    ],
)
def test_unread_gpu_work_makes_idle_unknown_and_is_named(
    file: Path, table: str, columns: dict[str, int]
) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps()
        made.put(table, start=150 * MS, end=160 * MS, **columns)
    opened = Opened(file)
    assert isinstance(opened.kernels.busy_ms_per_step, Unavailable)
    assert isinstance(opened.kernels.idle_ns, Unavailable)
    assert table in opened.kernels.idle_ns.reason
    assert isinstance(opened.first.gaps, Unavailable) and isinstance(
        opened.first.parts, Unavailable
    )
    assert opened.kernels.kernels_per_step == 10 and opened.kernels.wall_ms_per_step == 10
    assert table in {m.name for m in opened.data.missing} and table in opened.warnings
    gpu = opened.document()["engines"][0]["tracing"]["gpu"]
    assert gpu["busy_ns"] is None and table in gpu["busy_ns_reason"]
    assert table in render(opened.report, 200, opened.trace)


def test_tables_that_do_not_occupy_a_device_take_nothing_away(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps()
        made.work("CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", 150 * MS, 160 * MS, syncType=3, eventId=0)
        made.put("CUDA_GPU_MEMORY_USAGE_EVENTS", start=150 * MS, deviceId=0)
        made.put("CUPTI_ACTIVITY_KIND_OPENACC_LAUNCH", start=1, end=2, cuDeviceId=0)
        made.put("MY_PLUGIN_EVENTS", start=1, value=2)
    opened = Opened(file)
    assert opened.busy_idle[0] == pytest.approx(9.0)
    (missing,) = [m for m in opened.data.missing if m.name == "tables"]
    assert "MY_PLUGIN_EVENTS" in missing.reason and "SYNCHRON" not in missing.reason


# -- devices, processes, threads -----------------------------------------------------------------


def test_the_device_is_the_one_that_the_work_ran_on(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        for n, name in enumerate(("NVIDIA T1000", "NVIDIA A100", "NVIDIA L4", H100)):
            made.gpu(n, name)
        made.eager_steps(device=3)
    opened = Opened(file)
    info = opened.data.engines[0].info
    assert info is not None and info.device == "cuda:3"
    assert info.notes == [f"cuda:3 is GPU 3, {H100}"]
    assert opened.kernels.device == 3


def test_visible_devices_are_renumbered(file: Path) -> None:
    """CUDA_VISIBLE_DEVICES=3: the process calls GPU 3 its device 0."""
    with Capture(file) as made:
        made.process()
        made.process(4002, "other")
        made.gpu(0, "NVIDIA T1000")
        made.gpu(3, H100)
        made.eager_steps(count=5)
        made.eager_steps(count=5, pid=4002)
        for pid, gpu in ((PID, 3), (4002, 0)):
            made.put("TARGET_INFO_CUDA_DEVICE", gpuId=gpu, cudaId=0, pid=pid)
    opened = Opened(file)
    assert [e.info.notes for e in opened.data.engines if e.info] == [
        [f"cuda:0 is GPU 3, {H100}"],
        ["cuda:0 is GPU 0, NVIDIA T1000"],
    ]
    assert "is used by" not in opened.warnings  # two GPUs, not one shared


def test_two_processes_on_one_gpu(file: Path) -> None:
    with Capture(file) as made:
        made.process(4001, "prefill-server")
        made.process(4002, "decode-server")
        for i in range(20):
            start = 100 * MS + i * 10 * MS
            for k, pid in enumerate((4001, 4002)):
                made.range(start + k * 1000, start + 9_900_000, f"decode {i}", pid)
                at = start + 50_000 + k * 4_900_000
                launch = made.call(at - 40_000, at - 30_000, pid=pid)
                made.kernel(at, at + 4_800_000, pid=pid, correlation=launch)
    opened = Opened(file)
    assert "GPU 0 is used by prefill-server, decode-server" in opened.warnings
    for engine in opened.trace.engines:
        causes, kernels = engine.causes, engine.kernels
        assert isinstance(causes, GapCauses) and isinstance(kernels, KernelReport)
        times = {c.cause: c.total_ns for c in causes.causes}
        assert sum(times.values()) == causes.total_ns
        assert times["other process"] == pytest.approx(20 * 4_800_000, rel=0.01)
        assert kernels.devices[0].other_processes_ns == times["other process"]
        assert "idle is the engine's, not the GPU's" in "".join(engine.warnings)
    opened.document()


def test_ranges_in_one_process_and_kernels_in_another(file: Path) -> None:
    with Capture(file) as made:
        made.process(4001, "VLLM::EngineCore")
        made.process(4002, "VLLM::Worker")
        made.eager_steps(pid=4002)
        made.db.execute(f"UPDATE NVTX_EVENTS SET globalTid = {global_pid(4001) | 4001}")
    opened = Opened(file)
    assert [e.label for e in opened.data.engines] == ["VLLM::Worker"]
    assert opened.busy_idle[0] == pytest.approx(9.0) and opened.kernels.kernels_per_step == 10
    assert "VLLM::EngineCore, which ran nothing on a GPU" in opened.warnings


def test_ranges_of_another_thread_are_told(file: Path) -> None:
    with Capture(file) as made:
        made.process()
        made.eager_steps()
        for i in range(19):
            start = 103 * MS + i * 10 * MS
            made.range(start, start + 9 * MS, f"decode {i}", tid=5001)
    assert "19 such ranges of thread 5001 are not taken as steps" in Opened(file).warnings


def test_work_of_another_threads_steps_is_not_counted(file: Path) -> None:
    """Two threads with a loop each, by turns on one GPU: busy for 4 ms a step, not 8."""
    with Capture(file) as made:
        made.process()
        for k in (0, 1):
            for i in range(20 - k):
                start = 100 * MS + i * 10 * MS + k * 5 * MS
                made.range(start, start + 9 * MS, f"decode {i}", tid=5000 + k)
                launch = made.call(start + 1000, start + 9000, tid=5000 + k)
                name = f"void of_thread{k}(float*)"
                made.kernel(start + 10_000, start + 4_010_000, name, correlation=launch)
    opened = Opened(file)
    assert opened.busy_idle == (4.0, 6.0) and opened.kernels.kernels_per_step == 1
    assert {k.short_name for k in opened.kernels.kernels} == {"of_thread0"}
    assert "19 kernels and copies that thread 5001 launched are left out" in opened.warnings
    assert opened.kernels.idle_at_most == ""
    assert opened.kernels.devices[0].other_processes_ns == 19 * 4 * MS
    assert "idle is the engine's, not the GPU's" in opened.warnings


@pytest.mark.parametrize(
    ("devices", "expected"), [((0, 1), ["GPU 0", "GPU 1"]), ((0, 0), ["111", "112"])]
)
def test_processes_of_one_name_all_carry_their_gpu_or_pid(
    file: Path, devices: tuple[int, int], expected: list[str]
) -> None:
    with Capture(file) as made:
        for pid, device in zip((111, 112), devices, strict=True):
            made.process(pid)
            made.eager_steps(count=5, pid=pid, device=device)
        made.process(113, "server")
        made.eager_steps(count=5, pid=113, device=2)
    labels = [e.label for e in Opened(file).data.engines]
    between = " " if expected[0].startswith("GPU") else "-"
    assert labels == [*(f"python3{between}{one}" for one in expected), "server"]
