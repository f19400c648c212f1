"""The JSON document against its schema, and the plain-text table."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
from rundata_factory import (
    H100,
    decode_round,
    engine,
    engine_info,
    gpu_sample,
    run_data,
    run_info,
    two_engines,
)

from llmprof.analysis.view.report import build
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document, to_text
from llmprof.exports.text.table import render
from llmprof.records import Missing, RunData, Unavailable, Warned

SCHEMA = json.loads(schema.text())


def cpu_run() -> RunData:
    data = two_engines()
    for record, text in zip(
        data.engines, ("Once upon", "Once \x1b[2J\u202e upon\n a time"), strict=True
    ):
        record.text = text
        assert record.info is not None
        record.info.weights_id = "smollm2"
    data.missing = [Missing("run", "nvml", "no NVIDIA driver is loaded")]
    data.warnings = [Warned("torch", "warm-up did not become stable")]
    return data


def failing_run() -> RunData:
    data = cpu_run()
    failed = {"state": "failed", "failure_kind": "oom", "load_ns": None, "warmup_steps": None}
    record = engine(2, "exllamav2", failure="needs 12 GiB, 3 GiB are free", **failed)
    record.info = record.warmup_stable = None
    data.engines.append(record)
    data.logs = {"exllamav2": "Traceback…\nMemoryError"}
    return data


def first_engine_failing_run() -> RunData:
    data = failing_run()
    data.engines.reverse()
    return data


def gpu_run() -> RunData:
    info = engine_info(device="cuda:0", weight_bytes_per_step=16_000_000_000)
    rounds, samples = [], []
    for index in range(6):
        record = decode_round(0, index, [100.0] * 4, energy_mj=(0, 4000))
        free = decode_round(1, index, [1.0] * 4, synchronous=False)
        free.end_ns = free.stamps_ns[0] + 350_000_000
        rounds += [record, free]
        for engine_id, clock in ((0, 1980), (1, 1500)):
            at = index * 1000 + engine_id * 500 + 300
            values = {"sm_clock_mhz": clock, "throttle_mask": 4, "power_w": 400.0}
            samples.append(gpu_sample(at, gpm_dram_bw_pct=40.0, **values))
    engines = [engine(0, "torch", info=info), engine(1, "mlc", info=info)]
    return run_data(engines, rounds, gpu_devices=[H100], gpu_samples=samples)


def cut_off_run() -> RunData:
    info = run_info(state="interrupted", message="Ctrl-C")
    cut = decode_round(0, 0, [10.0, 10.0], complete=False, tokens=[])
    engines = [engine(0, "torch", state="running"), engine(1, "llamacpp", state="ready")]
    return run_data(engines, [cut], info=info)


def foreign_run() -> RunData:
    """A file that another tool made: no workload, no engine."""
    return run_data([], [], info=run_info(workload={}))


RUNS = [
    cpu_run,
    failing_run,
    first_engine_failing_run,
    gpu_run,
    cut_off_run,
    foreign_run,
    lambda: two_engines(rounds=1),
]


def document_of(data: RunData) -> dict[str, Any]:
    return to_document(build(data), data, Unavailable("no file"))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("make", RUNS)
def test_documents_are_valid(make: Any) -> None:
    document = document_of(make())
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    assert next(iter(document)) == "schema_version"
    assert json.loads(to_text(document)) == document


def undescribed(node: Any, path: str = "") -> list[str]:
    """Properties of the schema without a description of their own or of what they refer to."""
    found = []
    if isinstance(node, dict):
        for key, value in node.get("properties", {}).items():
            target = SCHEMA["$defs"][value["$ref"].split("/")[-1]] if "$ref" in value else value
            if "description" not in target:
                found.append(f"{path}/{key}")
        for key, value in node.items():
            found += undescribed(value, f"{path}/{key}")
    return found


def test_every_key_is_described() -> None:
    assert undescribed(SCHEMA) == []


def reasons(node: Any, path: str = "$") -> list[str]:
    """Breaches of the one convention: null and ``<key>_reason`` come together."""
    found = []
    if isinstance(node, dict):
        for key, value in node.items():
            if key.endswith("_reason") and node.get(key.removesuffix("_reason"), 0) is not None:
                found.append(f"{path}.{key} stands beside a value")
            if value is None and key != "failure" and not node.get(f"{key}_reason"):
                found.append(f"{path}.{key} is null without a reason")
            if key not in ("info", "environment"):
                found += reasons(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            found += reasons(value, f"{path}[{index}]")
    return found


@pytest.mark.parametrize("make", RUNS)
def test_every_null_has_its_reason(make: Any) -> None:
    assert reasons(document_of(make())) == []


def test_raw_samples_and_statistics_are_there() -> None:
    torch, llamacpp = document_of(cpu_run())["engines"]
    assert torch["itl_ms"]["samples_ms"][0] == [10.0] * 4
    assert (torch["tpot_ms"]["median"], torch["tok_s_per_sequence"]) == (
        pytest.approx(1e3 / torch["tok_s"]["median"], rel=1e-2),
        torch["tok_s"],
    )
    assert torch["tok_s"]["rounds"][0] == pytest.approx(100)
    assert torch["ttft_ms"]["median"] == 20
    assert llamacpp["tracing"]["slowdown"] == pytest.approx(12 / 11.75, rel=0.01)
    assert llamacpp["text"].startswith("Once \x1b")


def test_what_a_cpu_cannot_tell_is_null_with_a_reason() -> None:
    torch = document_of(cpu_run())["engines"][0]
    assert torch["j_per_token"] is None
    assert "GPUs only" in torch["j_per_token_reason"]
    assert torch["bandwidth"]["peak_gb_s"] is None
    assert torch["bandwidth"]["modelled_gb_s"] > 0


def test_a_failed_engine_keeps_its_place() -> None:
    failed = document_of(failing_run())["engines"][2]
    assert failed["failure"] == {
        "kind": "oom",
        "message": "needs 12 GiB, 3 GiB are free",
        "log_tail": "Traceback…\nMemoryError",
    }
    assert failed["tok_s"] is None
    assert failed["info"] is None


def test_not_a_number_never_reaches_the_document() -> None:
    data = cpu_run()
    data.info.environment["load"] = [math.nan, math.inf, 1.5]
    document = document_of(data)
    assert document["environment"]["load"] == [None, None, 1.5]
    assert "NaN" not in to_text(document)


def test_text_of_a_document_keeps_strings_as_they_are() -> None:
    data = cpu_run()
    data.engines[0].text = "[\n 1,\n 2\n]"
    text = to_text(document_of(data))
    assert json.loads(text)["engines"][0]["text"] == "[\n 1,\n 2\n]"
    assert "[10.0, 10.0, 10.0, 10.0]" in text
    assert text.isascii()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("make", RUNS)
def test_the_table_fits(make: Any, width: int) -> None:
    lines = render(build(make()), width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_the_table_of_a_cpu_run() -> None:
    text = render(build(cpu_run()), 80)
    assert "95% interval" in text
    assert "llamacpp is 3.00× as fast as torch (95 %: " in text
    assert "the first 5 of 5 greedy tokens are equal" in text
    assert "n/a¹" in text
    assert "  ¹ no peak known for a CPU" in text
    assert "! torch: warm-up did not become stable" in text
    assert "run: nvml: no NVIDIA driver is loaded" in text


def test_columns_are_aligned() -> None:
    lines = render(build(cpu_run()), 200).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("engine"))
    rows = lines[header : header + 4]
    assert len({len(row) for row in rows}) == 1
    # "prefill" is one band: its rule ends where its numbers end.
    end = rows[1].index("   ─", 15)
    assert all(row[end : end + 3] == "   " for row in rows)


def test_the_table_never_moves_the_terminal() -> None:
    data = failing_run()
    data.engines[2].failure = "bad \x1b[31m news"
    text = render(build(data), 80)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J" in text


def test_the_table_of_a_failed_engine_says_why() -> None:
    text = render(build(failing_run()), 80)
    assert "exllamav2 (oom): needs 12 GiB, 3 GiB are free" in text
    assert "exllamav2 failed, see above" in text


def test_the_table_of_a_gpu_run_keeps_modelled_and_measured_apart() -> None:
    text = render(build(gpu_run()), 80)
    assert "bandwidth, modelled" in text
    assert "bandwidth, measured" in text
    assert "SM clocks of GPU 0 drifted" in text
    assert "the GPU throttled while decoding: power cap in 100% of samples" in text
    assert "runs free" in text


def test_wide_characters_do_not_burst_the_width() -> None:
    data = cpu_run()
    data.engines[0].text = "漢字" * 200
    lines = render(build(data), 80).splitlines()
    assert all(len(line) + line.count("漢") + line.count("字") <= 80 for line in lines)
