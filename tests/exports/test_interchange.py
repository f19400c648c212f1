"""Results in the formats of other benchmarks, read by their own packages where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runfile_factory

from llmprof.errors import UsageError
from llmprof.exports.formats import export_runs

LLAMA_BENCH = """
build_commit build_number cpu_info gpu_info backends model_filename model_type model_size
model_n_params n_batch n_ubatch n_threads cpu_mask cpu_strict poll type_k type_v n_gpu_layers
split_mode main_gpu no_kv_offload flash_attn tensor_split tensor_buft_overrides use_mmap embeddings
no_op_offload n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts
"""
H100 = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("interchange") / "run.sqlite"
    runfile_factory.write_run(file, runfile_factory.sample_run(["torch", "llamacpp"], rounds=6))
    return file


def test_a_benchmark_report_is_valid_for_its_own_package(run: Path, tmp_path: Path) -> None:
    reports = pytest.importorskip("llmd_benchmark_report")
    out = export_runs([run], "benchmark-report", tmp_path / "reports")
    assert sorted(file.name for file in out.iterdir()) == ["llamacpp.json", "torch.json"]
    text = json.loads((out / "torch.json").read_text())
    report = reports.load_benchmark_report(text)
    assert (report.version, report.scenario.stack[0].standardized.tool) == ("0.2.1", "torch")
    aggregate = report.results.request_performance.aggregate
    rounds = text["results"]["profiling"]["llmprof"]["engines"][0]["rounds"]
    assert aggregate.requests.total == len(rounds)
    tpot = [r["decode_ns"] / r["steps"] / 1e9 for r in rounds]
    assert aggregate.latency.time_per_output_token.mean == pytest.approx(sum(tpot) / len(tpot))
    ttft = [r["ttft_ns"] / 1e9 for r in rounds]
    assert aggregate.latency.time_to_first_token.max == pytest.approx(max(ttft))


def test_llama_bench_has_a_test_for_the_prompt_and_one_for_generation(
    run: Path, tmp_path: Path
) -> None:
    out = export_runs([run], "llama-bench", tmp_path / "bench.json")
    rows = json.loads(out.read_text())
    kinds = [(r["backends"], r["n_prompt"] > 0, r["n_gen"] > 0) for r in rows]
    assert kinds == [(e, p, not p) for e in ("torch", "llamacpp") for p in (True, False)]
    for row in rows:
        assert len(row["samples_ns"]) == 6
        tokens = row["n_prompt"] + row["n_gen"]
        rates = [tokens / ns * 1e9 for ns in row["samples_ns"]]
        assert row["samples_ts"] == pytest.approx(rates)
        assert row["avg_ts"] == pytest.approx(sum(rates) / 6)
        # What scripts/compare-llama-bench.py of llama.cpp asks of every row, and no more than it
        # has columns for beside the samples of llama-bench's own JSON.
        assert set(LLAMA_BENCH.split()) == row.keys() - {"samples_ns", "samples_ts"}
    assert rows[1]["n_depth"] == rows[0]["n_prompt"]


def test_a_file_without_a_timing_pass_has_nothing_to_report(tmp_path: Path) -> None:
    file = tmp_path / "traced.sqlite"
    data = runfile_factory.sample_run(["torch"], rounds=2)
    data.rounds = [r for r in data.rounds if r.pass_name != "timing"]
    runfile_factory.write_run(file, data)
    for to in ("benchmark-report", "llama-bench"):
        with pytest.raises(UsageError, match="nothing to report"):
            export_runs([file], to, tmp_path / "none")
