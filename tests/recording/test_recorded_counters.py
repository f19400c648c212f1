"""PM samples of a recorded program: whose they are is found when the file is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmprof.analysis.view.opening import open_run
from llmprof.recording import bandwidth
from llmprof.recording.bandwidth import BandwidthSampling
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
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import PM_ROUNDS, process_number
from llmprof.runfile.writing.writer import RunFileWriter

T0 = 10**12


def recorded(path: Path, engines: int) -> RunData:
    info = RunInfo(T0, 0, "0", None, ["x"], {}, {}, "full", state="finished", source="recorded")
    with RunFileWriter(path, info) as writer:
        for i in range(engines):
            process = process_number(700 + i, 0)
            engine = EngineRecord(i, f"e{i}", "e", "", {}, "finished", traced_pid=process)
            engine.info = EngineInfo(device="cuda:1")
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
        times = np.arange(T0, T0 + 10_000, 500)
        half = np.full(len(times), 50.0)
        writer.put_pm_round(
            PmRound(PM_ROUNDS + 1, 1, 500, "test", 10, 0, False),
            {"start": times, "end": times + 500, "dram_pct": half, "dram_read_pct": half,
             "sm_active_pct": half},
        )  # fmt: skip
    data = open_run(path)
    with RunFileReader(path) as reader:
        for record in data.rounds_of(0, "sampled"):
            found = reader.pm_samples(record.round_id)
            assert found is not None and len(found[1].start_ns) == 20
    return data


def test_the_counters_of_a_gpu_that_one_process_used(tmp_path: Path) -> None:
    data = recorded(tmp_path / "a.sqlite", 1)
    (traced,), (sampled,) = data.rounds_of(0, "traced"), data.rounds_of(0, "sampled")
    assert sampled.stamps_ns == traced.stamps_ns and sampled.round_id == PM_ROUNDS + 1


@pytest.mark.parametrize("engines", [2, 3])
def test_the_counters_of_a_shared_gpu_are_nobodys(tmp_path: Path, engines: int) -> None:
    data = recorded(tmp_path / "a.sqlite", engines)
    assert not [r for r in data.rounds if r.pass_name == "sampled"]
    assert "its counters cannot be told apart by process" in str(data.why_missing("e0", "pm"))


class Counters:
    """A sampler that notes what it is asked for."""

    def __init__(self, device: int, interval_ns: int, further: bool) -> None:
        self.asked: list[str] = []
        self.pid = None

    def open(self) -> None:
        self.asked.append("open")

    def start_round(self, seconds: float) -> None:
        self.asked.append("start")

    def stop_round(self) -> Unavailable:
        self.asked.append("stop")
        return Unavailable("no samples from this double")

    def close(self) -> None:
        self.asked.append("close")


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> BandwidthSampling:
    monkeypatch.setattr(bandwidth, "PmTracer", Counters)
    return BandwidthSampling([GpuDevice(0, "GPU", "GPU-0")], None)


def asked(sampling: BandwidthSampling) -> list[str]:
    (tracer,) = sampling._tracers.values()
    assert isinstance(tracer, Counters)
    return tracer.asked


def test_counters_count_while_the_window_is_open(sampling: BandwidthSampling) -> None:
    sampling.open()
    for now, is_open in enumerate((False, False, True, True, False, False, True)):
        assert sampling.follow(is_open, now) == ""
        assert asked(sampling) == ["open", "start", "stop"][: (1, 1, 2, 2, 3, 3, 3)[now]]
    sampling.stop(None)
    assert asked(sampling)[3:] == ["close"]
    assert [m.reason for m in sampling.missing] == ["no samples from this double"]


def test_a_long_window_has_its_first_part_counted_and_says_so(sampling: BandwidthSampling) -> None:
    sampling.open()
    said = [sampling.follow(True, now) for now in (0.0, 119.0, 121.0, 122.0)]
    assert said[:2] == ["", ""] and "first 120 s only" in said[2] and said[3] == ""
    assert asked(sampling) == ["open", "start", "stop"]


def test_a_window_that_never_opens_is_a_reason(sampling: BandwidthSampling) -> None:
    sampling.open()
    sampling.follow(False, 0.0)
    sampling.stop(None)
    assert [m.reason for m in sampling.missing] == ["the window did not open: nothing was sampled"]
    assert asked(sampling) == ["open", "close"]
