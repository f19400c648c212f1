"""PM samples of a recorded program: whose they are is found when the file is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pm_stub
import pytest

from llmprof.analysis.bandwidth.kept import kept_bandwidth
from llmprof.analysis.view.opening import open_run
from llmprof.recording import closing
from llmprof.recording.sampled import bandwidth
from llmprof.recording.sampled.bandwidth import BandwidthSampling
from llmprof.recording.spooled.devices import DeviceMap
from llmprof.recording.spooled.image import Image
from llmprof.recording.spooled.spools import Recorded
from llmprof.records import (
    EngineInfo,
    EngineRecord,
    GpuDevice,
    NvtxEvent,
    PmRound,
    RunData,
    RunInfo,
    Unavailable,
)
from llmprof.records.processes import RecordedProcess
from llmprof.records.steps import StepChoice
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import PM_ROUNDS, PM_STRETCH, process_number
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pm.clock import Placement
from llmprof.tracers.pm.tracer import PmSamples

T0 = 10**12


def recorded(
    path: Path,
    engines: int,
    stretches: tuple[tuple[int, int], ...] = ((0, 20),),
    then: Callable[[RunFileWriter], None] = lambda writer: None,
    device: str = "cuda:1",
) -> RunData:
    """``stretches`` of sampling: from and to, in samples of 500 ns; steps take 1000 ns."""
    info = RunInfo(T0, 0, "0", None, ["x"], {}, {}, "full", state="finished", source="recorded")
    with RunFileWriter(path, info) as writer:
        for i in range(engines):
            process = process_number(700 + i, 0)
            engine = EngineRecord(i, f"e{i}", "e", "", {}, "finished", traced_pid=process)
            engine.info = EngineInfo(device=device)
            writer.put_engine(engine)
            steps = [
                NvtxEvent(T0 + n * 1000, T0 + n * 1000 + 900, f"decode {n}", process, 700, "")
                for n in range(10)
            ]
            writer.put_nvtx(steps)
            writer.put_process(
                RecordedProcess(
                    process, i, 700 + i, 1, f"e{i}", "/e", ["e"], None, T0, T0, T0 + 10_000,
                    5, 0, 0, 10, 0, True, "libcupti", devices={"0": "aa"},
                )
            )  # fmt: skip
        for number, (first, last) in enumerate(stretches):
            times = T0 + 500 * np.arange(first, last)
            half = np.full(len(times), 50.0)
            writer.put_pm_round(
                PmRound(PM_ROUNDS + number * PM_STRETCH + 1, 1, 500, "test", 10, 0, False),
                {"start": times, "end": times + 500, "dram_pct": half, "dram_read_pct": half,
                 "sm_active_pct": half},
            )  # fmt: skip
        then(writer)
    data = open_run(path)
    with RunFileReader(path) as reader:
        for record in data.rounds_of(0, "sampled"):
            found = reader.pm_samples(record.round_id)
            assert found is not None and len(found[1].start_ns) >= 2
    return data


def test_the_counters_of_a_gpu_that_one_process_used(tmp_path: Path) -> None:
    data = recorded(tmp_path / "a.sqlite", 1)
    (traced,), (sampled,) = data.rounds_of(0, "traced"), data.rounds_of(0, "sampled")
    assert sampled.stamps_ns == traced.stamps_ns and sampled.round_id == PM_ROUNDS + 1


def test_a_process_on_several_gpus_has_the_rounds_of_its_first(tmp_path: Path) -> None:
    data = recorded(tmp_path / "a.sqlite", 1, device="cuda:1,2")
    assert [r.round_id for r in data.rounds_of(0, "sampled")] == [PM_ROUNDS + 1]


def test_a_process_is_on_all_gpus_that_it_worked_on(tmp_path: Path) -> None:
    info = RunInfo(T0, 0, "0", None, ["x"], {}, {}, "full", state="finished", source="recorded")
    with RunFileWriter(tmp_path / "a.sqlite", info) as writer:
        new = EngineRecord(0, "e", "e", "", {}, "running", traced_pid=process_number(7, 0))
        image = Image(writer, process_number(7, 0), DeviceMap([]), None, lambda image: 0)
        image.devices = {3, 0}
        tail = SimpleNamespace(broken="", torn=0)
        found = cast(Recorded, SimpleNamespace(image=image, engine=new, tail=tail))
        closing._put_process(writer, found, lambda text, scope: None)
    assert new.info is not None and new.info.device == "cuda:0,3"


def test_each_stretch_of_sampling_has_the_steps_that_lie_in_it(tmp_path: Path) -> None:
    data = recorded(tmp_path / "a.sqlite", 1, ((0, 6), (7, 8), (11, 17)))
    (traced,) = data.rounds_of(0, "traced")
    first, last = data.rounds_of(0, "sampled")  # in the second there was no whole step
    assert [r.round_id - PM_ROUNDS for r in (first, last)] == [1, 2 * PM_STRETCH + 1]
    for found, begin, end in ((first, 0, 3000), (last, 5500, 8500)):
        inside = [t for t in traced.stamps_ns if begin <= t <= end]
        assert list(found.stamps_ns) == inside and found.steps == len(inside) - 1 >= 2
        assert begin <= found.start_ns <= found.stamps_ns[0] <= found.stamps_ns[-1] <= found.end_ns
        assert found.end_ns <= end
    assert not data.missing or "pm" not in {m.name for m in data.missing}


@pytest.mark.parametrize("engines", [2, 3])
def test_the_counters_of_a_shared_gpu_are_nobodys(tmp_path: Path, engines: int) -> None:
    data = recorded(tmp_path / "a.sqlite", engines)
    assert not [r for r in data.rounds if r.pass_name == "sampled"]
    assert "its counters cannot be told apart by process" in str(data.why_missing("e0", "pm"))


def test_what_the_fit_gives_is_kept_for_the_same_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    said: list[str] = []
    data = recorded(path, 1, then=lambda writer: closing.fit_bandwidth(writer, said.append))
    assert said == ["e0: fitting DRAM samples to kernels"]
    with RunFileReader(path) as reader:
        found = kept_bandwidth(reader, data, data.engines[0])
        assert isinstance(found, Unavailable)
        assert "no sampled round with kernels" in found.reason
        # Opened with other steps, it is of other samples.
        other = open_run(path, StepChoice(pattern="decode [0-5]"))
        assert other.rounds_of(0, "sampled")[0].steps < data.rounds_of(0, "sampled")[0].steps
        assert kept_bandwidth(reader, other, other.engines[0]) is None


class Counters:
    """A sampler that notes what it is asked for, and has samples or refuses."""

    samples: PmSamples | None = None

    def __init__(self, device: int, interval_ns: int, further: bool) -> None:
        self.asked: list[str] = []
        self.pid = None

    def open(self) -> None:
        self.asked.append("open")

    def start_round(self, seconds: float) -> None:
        self.asked.append("start")

    def stop_round(self) -> PmSamples | Unavailable:
        self.asked.append("stop")
        return self.samples or Unavailable("no samples from this double")

    def close(self) -> None:
        self.asked.append("close")


class Sampled:
    """The sampling of one GPU, over time as it is told."""

    def __init__(self, path: Path) -> None:
        info = RunInfo(T0, 0, "0", None, ["x"], {}, {}, "full", source="recorded")
        self.path = path
        self.writer = RunFileWriter(path, info)
        self.sampling = BandwidthSampling([GpuDevice(0, "GPU", "GPU-0")], None)
        self.sampling.open()

    def follow(self, is_open: bool, now_s: float) -> str:
        said = self.sampling.follow(is_open, now_s, self.writer)
        if self.sampling._stopping is not None:
            self.sampling._stopping.join()
            said += self.sampling.follow(is_open, now_s, self.writer)
        return said

    def stop(self) -> None:
        self.sampling.stop(self.writer)
        self.writer.close()

    @property
    def asked(self) -> list[str]:
        (tracer,) = self.sampling._tracers.values()
        assert isinstance(tracer, Counters)
        return tracer.asked


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sampled:
    monkeypatch.setattr(bandwidth, "PmTracer", Counters)
    return Sampled(tmp_path / "sampled.sqlite")


def test_counters_count_while_the_window_is_open(sampled: Sampled) -> None:
    for now, is_open in enumerate((False, False, True, True, False, False, True, True)):
        assert sampled.follow(is_open, now) == ""
        # What refused is not asked again, in a second window either.
        assert sampled.asked == ["open", "start", "stop"][: (1, 1, 2, 2, 3, 3, 3, 3)[now]]
    sampled.stop()
    assert sampled.asked[3:] == ["close"]
    assert {m.reason for m in sampled.sampling.missing} == {"no samples from this double"}


def test_a_long_window_is_counted_in_stretches_and_says_so(
    sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = T0 + 500 * np.arange(4)
    half = np.full(4, 50.0)
    found = PmSamples(
        times,
        times + 500,
        half,
        half,
        half,
        {},
        500,
        500,
        Placement("cupti", 0, 10, 0, 0),
        False,
        0,
        0,
    )
    monkeypatch.setattr(Counters, "samples", found)
    said = [sampled.follow(True, now) for now in np.arange(0, 60 * 40, 0.5)]
    (text,) = filter(None, said)
    assert "the first 60 s of the window, then 10 s of every 60 s, 240 s in all" in text
    assert sampled.asked.count("start") == 1 + (240 - 60) // 10  # no more, however long it goes on
    sampled.stop()
    with RunFileReader(sampled.path) as reader:
        stretches = reader.sampled_devices()
    assert [(n - PM_ROUNDS, device) for n, device, *_ in stretches] == [
        (i * PM_STRETCH, 0) for i in range(19)
    ]


def test_a_window_that_never_opens_is_a_reason(sampled: Sampled) -> None:
    sampled.follow(False, 0.0)
    sampled.stop()
    assert [m.reason for m in sampled.sampling.missing] == [
        "the window did not open: nothing was sampled"
    ]
    assert sampled.asked == ["open", "close"]


def test_what_a_copy_reaches_is_measured_before_the_program_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPUs that are wanted."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(Path(pm_stub.build(tmp_path)).parent))
    monkeypatch.setenv("LLMPROF_STUB_COPY_GB_S", "2500")
    gpus = [GpuDevice(n, f"GPU {n}", f"GPU-{n}") for n in (1, 2)]
    assert bandwidth.copies(gpus, frozenset({2})) == {"cuda:2": pytest.approx(2500, rel=1e-3)}
    monkeypatch.setenv("LLMPROF_STUB_CUDA", "none")
    found = bandwidth.copies(gpus, None)
    assert list(found) == ["cuda:1", "cuda:2"] and "cuInit" in found["cuda:1"]["reason"]
