"""The serve drive against a DOUBLE of MLC LLM's engine (tests/mlc_double), which follows its source
but is not it: what holds here is that the adapter speaks the interface as it is written there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlc_files
import numpy as np
import pytest
import small_models
from mlc_files import decode, load

from llmprof.engines import mlc_engine
from llmprof.errors import MissingPackage, ModelError, UsageError
from llmprof.models import mlc_synth
from llmprof.models.mlc_metadata import parse_metadata

tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
mlc_tiny = pytest.importorskip("mlc_tiny", reason="apache-tvm has no compiler here")

CONFIG = mlc_tiny.CONFIG
DOUBLE = Path(__file__).parent / "mlc_double"
ROWS = [[int(i) for i in np.random.default_rng(n).integers(3, 500, 40)] for n in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real weights with the config and the stand-in tokenizer that ``model synth`` writes."""
    root = tmp_path_factory.mktemp("serve")
    library = mlc_tiny.compile_library(mlc_tiny.Build(), root / "tiny.so")
    from tvm.runtime.vm import VirtualMachine

    machine = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.runtime.device("cpu"))
    metadata = parse_metadata(machine["_metadata"](), "tiny.so")
    weights = mlc_tiny.weights_from_hf(small_models.weights(CONFIG), CONFIG, "float32")
    made = root / "model"
    mlc_synth.synthesise(metadata, CONFIG, 512, 0, made, lambda what, share: None)
    mlc_files.write_folder(made, weights)
    shutil.copy(library, made / "tiny.so")
    return made


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(DOUBLE))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mlc_llm"]:
        del sys.modules[name]


@pytest.mark.usefixtures("double")
def test_serve_is_the_default_and_decodes_as_the_vm_drive(folder: Path) -> None:
    engine = load(folder)
    assert engine.describe().drive == "serve"
    assert engine.describe().versions["mlc_llm"] == "double-of-0.1.dev0"
    wanted = decode(load(folder, drive="vm"), ROWS[:1], 20)
    assert decode(engine, ROWS[:1], 20) == wanted
    assert decode(engine, ROWS[:1], 20) == wanted, "the second round must not see the first"
    engine.close()


@pytest.mark.usefixtures("double")
def test_a_batch_over_several_prefill_chunks(folder: Path) -> None:
    """Three prompts of 40 in chunks of 64: the first sequences wait for the last."""
    engine = load(folder, batch=3)
    assert decode(engine, ROWS, 20) == decode(load(folder, batch=3, drive="vm"), ROWS, 20)


@pytest.mark.usefixtures("double")
def test_a_round_up_to_the_last_position(folder: Path) -> None:
    """No request may end inside a round, and the whole context may be used."""
    row = [[int(i) for i in np.random.default_rng(9).integers(3, 500, 480)]]
    engine = load(folder, positions=512)
    assert len(decode(engine, row, 31)[0]) == 32


@pytest.mark.usefixtures("double")
def test_a_preempted_sequence_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlc_engine, "_kv_tokens", lambda request, asked: 112)
    engine = load(folder, batch=2)
    with pytest.raises(UsageError, match="preempted sequence 1 of 2"):
        decode(engine, [row[:32] for row in ROWS[:2]], 40)
    assert engine.drive.engine.preemptions == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("double")
def test_a_prompt_that_does_not_get_in_is_an_error(folder: Path) -> None:
    """MLC starts a prefill only with 8 positions to spare for each sequence."""
    engine = load(folder, batch=2, kv_tokens="128")
    with pytest.raises(UsageError, match=r"wait while others decoded: the KV cache is too"):
        decode(engine, [(row * 2)[:60] for row in ROWS[:2]], 3)


@pytest.mark.usefixtures("double")
def test_what_the_folder_lacks(folder: Path, tmp_path: Path) -> None:
    for missing, wanted in (
        ("mlc-chat-config.json", "gen_config"),
        ("tokenizer.json", "no tokenizer"),
    ):
        copy = tmp_path / missing
        shutil.copytree(folder, copy)
        (copy / missing).unlink()
        with pytest.raises(ModelError, match=wanted):
            load(copy, drive="serve")
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    (older / "tensor-cache.json").rename(older / "ndarray-cache.json")
    with pytest.raises(ModelError, match="ndarray-cache"):
        load(older, drive="serve")
    assert load(older, drive="vm").describe().drive == "vm"


@pytest.mark.usefixtures("double")
def test_random_weights_take_the_vm_drive(folder: Path) -> None:
    library = str(folder / "tiny.so")
    assert load("random", lib=library).describe().drive == "vm"
    with pytest.raises(UsageError, match="loads weights from files"):
        load("random", lib=library, drive="serve")


def test_without_mlc_llm_the_default_is_vm(folder: Path) -> None:
    info = load(folder).describe()
    assert info.drive == "vm"
    assert any("mlc_llm is not installed" in note for note in info.notes)
    with pytest.raises(MissingPackage, match=r"mlc\.ai/wheels"):
        load(folder, drive="serve")


def test_an_mlc_llm_without_its_library_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mlc_llm"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("Cannot find libraries: x.so")')
    monkeypatch.syspath_prepend(str(tmp_path))
    notes = load(folder).describe().notes
    assert any("Cannot find libraries" in note for note in notes), notes


def test_the_command_runs_it(folder: Path, llmprof: Any, clean_env: dict[str, str]) -> None:
    path = f"{DOUBLE}:{clean_env['PYTHONPATH']}"
    done = llmprof(
        *("--engine", f"mlc:model={folder}", "--engine", f"mlc:model={folder},drive=vm"),
        *("--prompt-len", "20", "--decode-len", "12", "--batch", "2", "--rounds", "2"),
        *("--traced-steps", "4", "--headless", "--json"),
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [e["info"]["drive"] for e in report["engines"]] == ["serve", "vm"]
    assert report["agreement"][0]["common_prefix"] == 13
