"""``llmprof model synth`` and ``prepare`` for MLC; the steps of ``prepare`` run in a double of
mlc_llm's command line (tests/support/mlc_double), whose results are real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlc_files
import numpy as np
import pytest
import small_models

pytest.importorskip("tvm", reason="apache-tvm is not installed")
mlc_tiny = pytest.importorskip("mlc_tiny", reason="apache-tvm has no compiler here")

CONFIG = mlc_tiny.CONFIG
HERE = Path(__file__).parents[2] / "support"
PATH = {"PYTHONPATH": f"{HERE / 'mlc_double'}:{HERE / 'weights'}:{HERE / 'plugin'}"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = mlc_tiny.Build(quantization="q4f16_1")
    return mlc_tiny.compile_library(build, tmp_path_factory.mktemp("lib") / "q4.so")


def test_synth_writes_what_the_library_asks_for(
    library: Path, llmprof: Any, tmp_path: Path
) -> None:
    done = llmprof("model", "synth", "--engine", "mlc", "--lib", str(library), "-o", "made")
    assert done.returncode == 0, done.stderr
    assert "random q4f16_1 for mlc" in done.stdout
    engine = mlc_files.load(tmp_path / "made", lib=str(library))
    info = engine.describe()
    assert info.model_format == "random mlc q4f16_1"
    assert info.weights_id is None
    assert info.dtype == "fp16"
    # Codes and a scale of 16 bits for 32 of them; the norms, at 16, are a little of the whole.
    assert info.bits_per_weight == pytest.approx(4.5, abs=0.05)
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2
    logits = engine.drive.logits([[3, 4, 5]])[0]  # type: ignore[attr-defined]
    assert abs(logits).max() < 100
    texts = [mlc_files.decode(engine, [row], 20)[0] for row in ([3, 4, 5], [50, 61, 7, 9])]
    assert all(len(set(text)) > 3 for text in texts), texts
    assert texts[0] != texts[1]


def test_synth_refuses(library: Path, llmprof: Any, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    for words, wanted in (
        (["--lib", str(library), "tiny", "-o", "x"], "tiny has 4 layers"),
        (["--lib", str(library)], "-o DIR"),
        (["-o", "x"], "--lib LIB.so"),
        (["--lib", "text.so", "-o", "x"], "no shared library of Linux"),
        (["--lib", "nothing.so", "-o", "x"], "No such file"),
        (["--lib", str(library), "--bits", "4", "-o", "x"], "--bits is for the ExLlama engines"),
        (["--lib", str(library), "-o", "."], "is not overwritten"),
    ):
        done = llmprof("model", "synth", "--engine", "mlc", *words)
        assert done.returncode == 2, words
        assert wanted in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    done = llmprof("model", "synth", "tiny-128", "--engine", "exllama", "--lib", "x", "-o", "x")
    assert done.returncode == 2
    assert "--lib is for --engine mlc" in done.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = small_models.write_hf(tmp_path / "small", small_models.weights(CONFIG))
    (folder / "config.json").write_text(json.dumps(small_models.hf_config(CONFIG)))
    return folder


def prepare(llmprof: Any, *words: str, **env: str) -> Any:
    more = ["model", "prepare", "--engine", "mlc", "--from", "small", "--quantization", "q0f32"]
    return llmprof(*more, "--target", "cpu", *words, env={**PATH, **env})


def test_prepare_runs_the_three_steps(source: Path, llmprof: Any, tmp_path: Path) -> None:
    done = prepare(llmprof)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "dist" / "small-q0f32-MLC"
    assert (tmp_path / "dist" / "libs" / "small-q0f32-cpu.so").is_file()
    assert str(Path("dist/small-q0f32-MLC")) in done.stdout
    for step in ("gen_config (1 of 3)", "convert_weight (2 of 3)", "compile (3 of 3)"):
        assert step in done.stderr
    logs = {log.name: log.read_text() for log in (tmp_path / "dist" / "logs").glob("*.log")}
    assert len(logs) == 3
    assert "Compilation complete" in logs["small-q0f32-cpu-compile.log"]

    again = prepare(llmprof)
    assert again.returncode == 0
    assert again.stderr.count("kept") == 3

    # The library is found beside the weights, and the weights are known as those of the source.
    ran = llmprof(
        *(
            "--engine",
            f"mlc:model={folder}",
            "--engine",
            f"torch:model={source},device=cpu",
        ),
        *("--prompt-len", "16", "--decode-len", "8", "--rounds", "2", "--traced-steps", "2"),
        *("--headless", "--json"),
        env=PATH,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["agreement"][0]["common_prefix"] == 9
    # The source has no tokenizer, and MLC LLM's engine insists on one.
    info = report["engines"][0]["info"]
    assert info["drive"] == "serve"
    assert "stand-in for a missing tokenizer.json" in info["notes"]


@pytest.mark.usefixtures("source")
def test_a_failing_step_names_its_log_and_is_redone(llmprof: Any, tmp_path: Path) -> None:
    done = prepare(llmprof, MLC_DOUBLE_FAILS="compile")
    assert done.returncode == 1
    assert "compile failed with exit code 1: ValueError: the double was told" in done.stderr
    assert "logs/small-q0f32-cpu-compile.log" in done.stderr
    assert not list((tmp_path / "dist" / "libs").iterdir())
    again = prepare(llmprof)
    assert again.returncode == 0
    assert again.stderr.count("kept") == 2


def test_prepare_refuses(source: Path, llmprof: Any, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    for words, wanted in (
        (["--from", "nowhere"], "no Hugging Face folder"),
        (["--from", "pickled"], "pickle"),
        (["--quantization", "../x"], "expected a plain name"),
        (["--python", "/nowhere/python"], "No such file"),
        (["--format", "gptq"], "--format is for the ExLlama engines"),
        (["-o", "x"], "--artifact-path"),
    ):
        done = prepare(llmprof, *words)
        assert done.returncode == 2, (words, done.stderr)
        assert wanted in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    missing = llmprof("model", "prepare", "--engine", "mlc", "--from", str(source))
    assert missing.returncode == 2
    assert "mlc.ai/wheels" in missing.stderr
    # Asked first: without MLC LLM nothing about the folder matters.
    elsewhere = llmprof("model", "prepare", "--engine", "mlc", "--from", "nowhere")
    assert elsewhere.returncode == 2
    assert "mlc_llm is not installed" in elsewhere.stderr


@pytest.fixture
def compiled(tmp_path: Path) -> None:
    """A result of the last step, which is kept: compiling takes seconds."""
    (tmp_path / "dist" / "libs").mkdir(parents=True)
    (tmp_path / "dist" / "libs" / "small-q0f32-cpu.so").touch()


def contents(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime for p in [folder, *folder.rglob("*")]}


def converted_id(tmp_path: Path, quantization: str = "q0f32") -> str:
    cache = tmp_path / "dist" / f"small-{quantization}-MLC" / "tensor-cache.json"
    return json.loads(cache.read_text())["metadata"]["llmprof"]["weights_id"]


@pytest.mark.usefixtures("compiled")
def test_prepare_writes_to_the_artifacts_alone(source: Path, llmprof: Any, tmp_path: Path) -> None:
    """A models folder may be read-only (root writes to those as well, so its contents tell)."""
    (source / "model.safetensors").rename(source / "weights.safetensors")
    before = contents(source)
    done = prepare(llmprof)
    assert done.returncode == 0, done.stderr
    assert contents(source) == before
    left = {path.name for path in (tmp_path / "dist").iterdir()}
    assert left == {"small-q0f32-MLC", "libs", "logs"}


@pytest.mark.usefixtures("compiled")
def test_weights_that_were_rounded_are_not_the_source_s(
    source: Path, llmprof: Any, tmp_path: Path
) -> None:
    from llmprof.models.huggingface.reader import SafetensorsWeights

    known = SafetensorsWeights(source).weights_id
    done = prepare(llmprof, MLC_DOUBLE_ENCODING="f32-to-bf16")
    assert done.returncode == 0, done.stderr
    assert converted_id(tmp_path) == f"{known}-q0f32"
    shutil.rmtree(tmp_path / "dist" / "small-q0f32-MLC")
    assert prepare(llmprof).returncode == 0
    assert converted_id(tmp_path) == known


@pytest.mark.usefixtures("compiled")
def test_what_mlc_leaves_out_is_refused(source: Path, llmprof: Any, tmp_path: Path) -> None:
    """Known beforehand for a Llama; for others by MLC LLM's own warning."""
    left_out = "model.layers.0.mlp.extra.weight, model.layers.0.self_attn.rotary_emb.inv_freq"
    done = prepare(llmprof, MLC_DOUBLE_UNUSED=left_out)
    assert done.returncode == 2
    assert "MLC LLM left out tensor model.layers.0.mlp.extra.weight" in done.stderr
    assert not (tmp_path / "dist" / "small-q0f32-MLC" / "tensor-cache.json").exists()
    more = small_models.weights(CONFIG)
    more["model.layers.1.self_attn.q_norm.weight"] = np.ones(32, np.float32)
    small_models.write_hf(source, more)
    (source / "config.json").write_text(json.dumps(small_models.hf_config(CONFIG)))
    done = prepare(llmprof)
    assert done.returncode == 2
    assert "tensor model.layers.1.self_attn.q_norm.weight is nothing that MLC" in done.stderr


@pytest.mark.usefixtures("compiled")
def test_results_of_another_source_are_not_kept(source: Path, llmprof: Any, tmp_path: Path) -> None:
    assert prepare(llmprof).returncode == 0
    small_models.write_hf(source, small_models.weights(CONFIG, seed=9))
    (source / "config.json").write_text(json.dumps(small_models.hf_config(CONFIG)))
    done = prepare(llmprof)
    assert done.returncode == 2
    assert "holds weights of another source" in done.stderr


def test_mlc_sees_rope_where_it_looks_for_it(tmp_path: Path) -> None:
    from llmprof.errors import ModelError
    from llmprof.models.mlc.source import linked, open_source

    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    document = small_models.hf_config()
    document.pop("rope_theta")
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    document["rope_parameters"] = {**llama3, "rope_theta": 500000.0}
    (folder / "config.json").write_text(json.dumps(document))
    with linked(open_source(folder), tmp_path) as seen:
        shown = json.loads((seen / "config.json").read_text())
        table = json.loads((seen / "model.safetensors.index.json").read_text())["weight_map"]
        assert (seen / "model.safetensors").resolve() == folder / "model.safetensors"
    assert (shown["rope_theta"], shown["rope_scaling"]) == (500000.0, llama3)
    assert set(table.values()) == {"model.safetensors"}
    document["rope_parameters"] = {"rope_type": "linear", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="no linear rope scaling"):
        open_source(folder)


def test_an_id_sees_every_value(tmp_path: Path) -> None:
    from llmprof.models.mlc.weights import open_weights

    ids = set()
    for place in (None, 0, 5000, 9999):
        values = np.zeros(10000, np.float32)
        if place is not None:
            values[place] = 1
        folder = mlc_files.write_folder(tmp_path / str(place), {"w": values}, weights_id=None)
        ids.add(open_weights(folder).weights_id)
    assert len(ids) == 4
