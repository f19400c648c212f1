"""What a group of ranks is told beside its kernels: its GPUs, and where the late host stood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import ranks_factory
import ranks_facts
from ranks_run import run_of

from llmprof.analysis.bandwidth.sampled import sampled_steps
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document
from llmprof.exports.text.table import render
from llmprof.records import Missing, Unavailable
from llmprof.runfile.reader import RunFileReader

POWER_CAP = 4
"""NVML's clocks event reason SW power cap (nvml.h)."""


def group_of(path: Path) -> RanksReport:
    data = open_run(path)
    (group,) = RunTrace(Path(data.path), data).ranks
    return group


def test_every_gpu_has_power_memory_clock_and_counters(tmp_path: Path) -> None:
    members = ranks_factory.group(3, 12)
    path = run_of(
        tmp_path / "run.sqlite", members, lambda w, _: ranks_facts.put_gpus(w, members, {})
    )
    group = group_of(path)
    assert [gpu.device for gpu in group.gpus] == [0, 1, 2]
    assert [gpu.power_w for gpu in group.gpus] == [300.0, 400.0, 500.0]
    assert [gpu.memory_used_mib for gpu in group.gpus] == [20480.0, 21504.0, 22528.0]
    assert [gpu.dram_pct for gpu in group.gpus] == pytest.approx([50.0, 51.0, 52.0])
    assert [gpu.sm_active_pct for gpu in group.gpus] == pytest.approx([80.0] * 3)
    assert group.nvlink_gb_s == pytest.approx(478.116)


def test_what_was_not_sampled_is_unavailable_with_its_reason(tmp_path: Path) -> None:
    members = ranks_factory.group(2, 12)

    def further(writer, _record) -> None:  # type: ignore[no-untyped-def]
        ranks_facts.put_gpus(writer, members[:1], {})
        writer.put_missing([Missing("torch", "pm of GPU 1", "the counters are taken")])

    group = group_of(run_of(tmp_path / "run.sqlite", members, further))
    known, other = group.gpus
    assert known.power_w == 300.0
    assert isinstance(other.power_w, Unavailable)
    assert isinstance(other.dram_pct, Unavailable)
    assert other.dram_pct.reason == "the counters are taken"
    assert isinstance(group.nvlink_gb_s, Unavailable)
    without = group_of(run_of(tmp_path / "bare.sqlite", members))
    assert without.gpus == ()


def test_a_power_cap_is_the_reason_of_slow_kernels(tmp_path: Path) -> None:
    members = ranks_factory.group(4, 16, kernel_ns={2: 400_000})
    path = run_of(
        tmp_path / "run.sqlite",
        members,
        lambda w, _: ranks_facts.put_gpus(w, members, {2: 1200}, POWER_CAP),
    )
    group = group_of(path)
    assert group.reason is not None
    assert (group.reason.rank, group.reason.why) == (2, "clock")
    assert "1200 MHz, 1980 MHz on the other GPUs" in group.words
    assert "power cap" in group.words
    assert "slow_kernel" in group.words
    # The clock of a rank that is not late is no reason.
    other = run_of(
        tmp_path / "other.sqlite",
        members,
        lambda w, _: ranks_facts.put_gpus(w, members, {1: 1200}, POWER_CAP),
    )
    again = group_of(other)
    assert again.reason is not None
    assert again.reason.why == "kernels"


def test_the_late_host_is_named_by_its_stack(tmp_path: Path) -> None:
    members = ranks_factory.group(2, 12, host_ns={1: ranks_facts.SLEEP_NS})
    path = run_of(
        tmp_path / "run.sqlite", members, lambda w, r: ranks_facts.put_host(w, members, r)
    )
    group = group_of(path)
    assert group.reason is not None
    assert group.reason.why == "host"
    assert "its host was in planted (plant.py) in 9" in group.words


@pytest.mark.parametrize("early_ns", [-800_000, 800_000])
def test_samples_that_are_dated_badly_name_no_wrong_function(tmp_path: Path, early_ns: int) -> None:
    """A long sleep is named all the same; of one that is shorter than the error nothing is said."""
    for number, sleep_ns in enumerate((ranks_facts.SLEEP_NS, 900_000)):
        members = ranks_factory.group(2, 12, host_ns={1: sleep_ns})
        path = run_of(
            tmp_path / f"{number}.sqlite",
            members,
            lambda w, r, m=members, ns=sleep_ns: ranks_facts.put_host(w, m, r, ns, early_ns),
        )
        group = group_of(path)
        assert group.reason is not None
        assert group.reason.why == "host"
        if number == 0:
            assert "its host was in planted (plant.py)" in group.words
        else:
            assert "replay" not in group.words


def test_json_and_text_have_them(tmp_path: Path) -> None:
    members = ranks_factory.group(2, 12)
    path = run_of(
        tmp_path / "run.sqlite",
        members,
        lambda w, _: ranks_facts.put_gpus(w, members, {1: 1400}, POWER_CAP),
    )
    data = open_run(path)
    trace = RunTrace(path, data)
    document = to_document(build(data), data, trace)
    jsonschema.validate(document, json.loads(schema.text()))
    (group,) = document["ranks"]
    assert [gpu["power_w"] for gpu in group["gpus"]] == [300.0, 400.0]
    assert [len(gpu["throttle"]) for gpu in group["gpus"]] == [0, 1]
    assert group["lateness"]["steps"] == 12
    text = render(build(data), 80, trace)
    assert "mem GiB" in text
    assert "GPU 1 was held back: " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("ranks", "gb_s"), [(1, 1010.0), (2, 500.0)])
def test_layers_on_two_gpus_are_read_by_both(tmp_path: Path, ranks: int, gb_s: float) -> None:
    members = [replace(m, pid=4711) for m in ranks_factory.group(2, 12)]
    path = run_of(
        tmp_path / "run.sqlite",
        members,
        lambda w, _: ranks_facts.put_gpus(w, members, {}),
        one_process=True,
    )
    data = open_run(path)
    (engine,) = data.engines
    assert engine.info is not None
    engine = replace(engine, info=replace(engine.info, ranks=ranks))
    wide = {"max_mem_clock_mhz": 1000, "bus_width_bits": 4000}  # 1000 GB/s
    devices = [replace(d, **wide) for d in data.gpu_devices]
    with RunFileReader(path) as reader:
        found = sampled_steps(reader, replace(data, gpu_devices=devices), engine)
        assert not isinstance(found, Unavailable)
        assert found.mean_measured_gb_s == pytest.approx(gb_s)
        assert all(value is None or value == pytest.approx(gb_s) for value in found.measured_gb_s)
        unknown = sampled_steps(reader, replace(data, gpu_devices=devices[:1]), engine)
    assert isinstance(unknown, Unavailable) == (ranks == 1)
