"""An engine on several GPUs has the conditions of each; a run that is over shows its steps."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
from rundata_factory import decode_round, engine, engine_info, gpu_sample, run_data, run_info

from llmprof.analysis.device.step_kinds import StepGroup
from llmprof.analysis.timing.conditions import Conditions, condition_warnings, conditions
from llmprof.analysis.view.frames.frame import _gpus
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.exports.json import schema
from llmprof.exports.json.report import _conditions
from llmprof.exports.json.steps import _group
from llmprof.records import GpuDevice, RunData
from llmprof.runfile.schema import PM_FURTHER, PM_ROUNDS, PM_STRETCH, pm_round
from llmprof.tui.drawing.cells import text_of
from llmprof.tui.drawing.glyphs import UNICODE
from llmprof.tui.live.gpu import panel

HEAT = 0x40
"""NVML: hardware thermal slowdown."""


def traced(samples: list[Any], devices: str = "0,1") -> RunData:
    """A recording of one round of 40 ms behind 20 ms of prefill; idle from 60 ms on."""
    numbers = [int(n) for n in devices.split(",")]
    return run_data(
        [engine(0, "loop", info=engine_info(device=f"cuda:{devices}"))],
        [decode_round(0, 0, start_ms=0, pass_name="traced")],
        info=run_info(source="recorded"),
        gpu_samples=samples,
        gpu_devices=[GpuDevice(n, f"u{n}", "H100") for n in numbers],
    )


def busy(device: int, **values: Any) -> Any:
    return gpu_sample(30, device=device, sm_clock_mhz=1980, gpm_sm_util_pct=75.0, **values)


def idle(device: int) -> Any:
    return gpu_sample(90, device=device, sm_clock_mhz=345, gpm_sm_util_pct=0.0)


def test_conditions_and_throttling_of_each_gpu() -> None:
    data = traced([busy(0), busy(1, throttle_mask=HEAT), idle(0), idle(1)])
    found = conditions(data, data.engines[0])
    assert isinstance(found, Conditions)
    assert [found.device, *(c.device for c in found.further)] == [0, 1]
    (warned,) = condition_warnings([("loop", found)])
    assert warned.text.startswith("GPU 1 throttled while decoding")
    document = _conditions(found)
    assert [other["gpu"] for other in document["further"]] == [1]
    whole = json.loads(schema.text())
    jsonschema.validate(document, {**whole["$defs"]["conditions"], "$defs": whole["$defs"]})


@pytest.mark.parametrize("devices", ["0", "0,1"])
def test_the_panel_of_a_run_that_is_over_shows_what_its_steps_had(devices: str) -> None:
    numbers = [int(n) for n in devices.split(",")]
    for samples, shown in (([busy(n) for n in numbers], True), ([], False)):
        data = traced([*samples, *(idle(n) for n in numbers)], devices)
        snapshot = cast(Snapshot, SimpleNamespace(gpus=_gpus(data, ""), engines=()))
        text = "\n".join(map(text_of, panel(snapshot, 160, UNICODE, 12)))
        assert ("traced rounds, medians" in text) is shown
        assert ("no NVML sample fell into a decode step" in text) is not shown
        assert text.count("1980") == len(numbers) * shown and "345" not in text


def test_counters_of_another_gpu_of_a_recorded_stretch() -> None:
    assert pm_round(PM_ROUNDS + 3 * PM_STRETCH + 1, 2, 1) == PM_ROUNDS + 3 * PM_STRETCH + 2
    assert pm_round(7, 1, 1) == 7 and pm_round(7, 2, 1) == PM_FURTHER + (7 << 8) + 2


def test_found_steps_are_not_said_to_have_ranges() -> None:
    group = StepGroup("decode", 2, True, 1.0, 0.5, 0.5, 3.0, 3.0, None, None)
    assert "range" not in _group(group, "detected")["tokens_reason"]
    assert "ranges" in _group(group, "marked")["tokens_reason"]
