"""The serve drive against MLC LLM's own engine where it is installed, and everywhere against a
DOUBLE of it (tests/support/mlc_double), which follows its source but is not it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module, util
from pathlib import Path
from typing import Any

import mlc_files
import numpy as np
import pytest
import small_models
from mlc_files import decode, load

from llmprof.engines.mlc import engine as mlc_engine
from llmprof.engines.mlc.serve_drive import import_mlc
from llmprof.errors import EngineFailure, MissingPackage, ModelError, OutOfMemory, UsageError
from llmprof.models.mlc import synth as mlc_synth
from llmprof.models.mlc.metadata import parse_metadata

tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
mlc_tiny = pytest.importorskip("mlc_tiny", reason="apache-tvm has no compiler here")

CONFIG = mlc_tiny.CONFIG
DOUBLE = Path(__file__).parents[1] / "support" / "mlc_double"
ROWS = [[int(i) for i in np.random.default_rng(n).integers(3, 500, 40)] for n in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real weights with the config and the stand-in tokenizer that ``model synth`` writes."""
    root = tmp_path_factory.mktemp("serve")
    library = mlc_tiny.compile_library(mlc_tiny.Build(), root / "tiny.so")
    weights = mlc_tiny.weights_from_hf(small_models.weights(CONFIG), CONFIG, "float32")
    made = root / "model"
    mlc_synth.synthesise(_metadata(library), CONFIG, 512, 0, made, lambda what, share: None)
    mlc_files.write_folder(made, weights)
    shutil.copy(library, made / "tiny.so")
    return made


def _metadata(library: Path) -> Any:
    from tvm.runtime.vm import VirtualMachine

    machine = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.runtime.device("cpu"))
    return parse_metadata(machine["_metadata"](), "tiny.so")


def _own_modules() -> dict[str, Any]:
    found = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "mlc_llm"}
    for name in found:
        del sys.modules[name]
    return found


@pytest.fixture
def none_imported() -> Iterator[None]:
    installed = _own_modules()
    yield
    _own_modules()
    sys.modules.update(installed)


@pytest.fixture
def double(none_imported: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOUBLE))


@pytest.fixture(params=["double", "installed"])
def engine_of(request: pytest.FixtureRequest) -> str:
    """Whose SyncMLCEngine runs."""
    if request.param == "double":
        request.getfixturevalue("double")
    elif util.find_spec("mlc_llm") is None:
        pytest.skip("MLC LLM is not installed")
    else:
        import_mlc()
    return str(request.param)


def test_serve_is_the_default_and_decodes_as_the_vm_drive(folder: Path, engine_of: str) -> None:
    engine = load(folder)
    assert engine.describe().drive == "serve"
    version = engine.describe().versions["mlc_llm"]
    assert version.startswith("double-of") == (engine_of == "double")
    wanted = decode(load(folder, drive="vm"), ROWS[:1], 20)
    assert decode(engine, ROWS[:1], 20) == wanted
    assert decode(engine, ROWS[:1], 20) == wanted, "the second round must not see the first"
    engine.close()


@pytest.mark.usefixtures("engine_of")
def test_a_batch_over_several_prefill_chunks(folder: Path) -> None:
    """Three prompts of 40 in chunks of 64: the first sequences wait for the last."""
    engine = load(folder, batch=3)
    assert decode(engine, ROWS, 20) == decode(load(folder, batch=3, drive="vm"), ROWS, 20)


@pytest.mark.usefixtures("engine_of")
def test_a_round_up_to_the_last_position(folder: Path) -> None:
    """No request may end inside a round, and the whole context may be used; the least KV cache
    that the option takes is enough for it."""
    row = [[int(i) for i in np.random.default_rng(9).integers(3, 500, 480)]]
    engine = load(folder, positions=512, kv_tokens=str(512 + 160))
    found = decode(engine, row, 31)
    assert found == decode(load(folder, positions=512, drive="vm"), row, 31)


@pytest.mark.usefixtures("engine_of")
def test_a_batch_that_fills_its_kv_cache(folder: Path) -> None:
    rows = [[int(i) for i in np.random.default_rng(n).integers(3, 500, 33)] for n in range(4)]
    engine = load(folder, batch=4, positions=64, kv_tokens=str(4 * (64 + 160)))
    assert decode(engine, rows, 31) == decode(load(folder, batch=4, drive="vm"), rows, 31)


def test_a_preempted_sequence_is_an_error(
    folder: Path, engine_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlc_engine, "_kv_tokens", lambda *_: 25 * 16)
    engine = load(folder, batch=2)
    with pytest.raises(UsageError, match="preempted sequence 1 of 2"):
        decode(engine, [row[:32] for row in ROWS[:2]], 40)
    if engine_of == "double":
        assert engine.drive.engine.preemptions == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("double")
def test_a_kv_cache_that_the_scheduler_would_preempt_in(folder: Path) -> None:
    """It keeps 10 pages a sequence free; the vm drive does not."""
    with pytest.raises(UsageError, match=r"batch 2 .* and 160 that MLC's scheduler keeps free"):
        load(folder, batch=2, kv_tokens="256", drive="serve")
    assert load(folder, batch=2, kv_tokens="128", drive="vm").describe().drive == "vm"


@pytest.mark.usefixtures("engine_of")
def test_what_the_folder_lacks_is_made_up_for(folder: Path, tmp_path: Path) -> None:
    """A config, a tokenizer, the current name of the cache file."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if file.suffix in (".bin", ".so"):
            (bare / file.name).symlink_to(file)
    shutil.copy(folder / "tensor-cache.json", bare / "ndarray-cache.json")
    before = sorted(file.name for file in bare.iterdir())
    engine = load(bare, drive="serve")
    notes = engine.describe().notes
    for name in ("mlc-chat-config.json", "tokenizer.json"):
        assert f"stand-in for a missing {name}" in notes
    assert "ndarray-cache.json shown to the engine as tensor-cache.json" in notes
    assert decode(engine, ROWS[:1], 9) == decode(load(folder, drive="vm"), ROWS[:1], 9)
    assert before == sorted(file.name for file in bare.iterdir())


@pytest.mark.usefixtures("engine_of")
def test_a_shorter_context_in_the_config_is_no_limit(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "short"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "mlc-chat-config.json").read_text())
    config["context_window_size"] = 48
    (copy / "mlc-chat-config.json").write_text(json.dumps(config))
    assert len(decode(load(copy, drive="serve"), ROWS[:1], 20)[0]) == 21


@pytest.mark.usefixtures("double")
def test_a_config_of_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "mlc-chat-config.json").read_text())
    (copy / "mlc-chat-config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(ModelError, match=r"vocab_size is 300, the weights have 512.*gen_config"):
        load(copy, drive="serve")


@pytest.mark.usefixtures("engine_of")
def test_random_weights_on_disk_are_served(folder: Path, tmp_path: Path) -> None:
    """What ``model synth`` writes; those that are made on the device take the vm drive."""
    library = folder / "tiny.so"
    made = tmp_path / "random"
    mlc_synth.synthesise(_metadata(library), None, 512, 0, made, lambda what, share: None)
    engine = load(made, lib=str(library))
    assert engine.describe().drive == "serve"
    wanted = decode(load(made, lib=str(library), drive="vm"), ROWS[:1], 9)
    assert decode(engine, ROWS[:1], 9) == wanted


@pytest.mark.usefixtures("double")
def test_random_weights_without_files_take_the_vm_drive(folder: Path) -> None:
    library = str(folder / "tiny.so")
    assert load("random", lib=library).describe().drive == "vm"
    with pytest.raises(UsageError, match="loads weights from files"):
        load("random", lib=library, drive="serve")


@pytest.mark.usefixtures("double")
def test_another_interface_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(*, max_num_sequence: int, max_total_sequence_length: int) -> None: ...

    monkeypatch.setattr(import_module("mlc_llm.serve.config"), "EngineConfig", older)
    with pytest.raises(EngineFailure, match=r"another interface.*unexpected keyword.*drive=vm"):
        load(folder)


@pytest.mark.skipif(util.find_spec("mlc_llm") is not None, reason="MLC LLM is installed")
def test_without_mlc_llm_the_default_is_vm(folder: Path) -> None:
    info = load(folder).describe()
    assert info.drive == "vm"
    assert any("mlc_llm is not installed" in note for note in info.notes)
    with pytest.raises(MissingPackage, match=r"mlc\.ai/wheels"):
        load(folder, drive="serve")


@pytest.mark.usefixtures("none_imported")
def test_an_mlc_llm_without_its_library_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mlc_llm"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("Cannot find libraries: x.so")')
    monkeypatch.syspath_prepend(str(tmp_path))
    notes = load(folder).describe().notes
    assert any("Cannot find libraries" in note for note in notes), notes


def test_the_command_runs_it(
    folder: Path, engine_of: str, llmprof: Any, clean_env: dict[str, str]
) -> None:
    path = str(DOUBLE) if engine_of == "double" else os.environ.get("PYTHONPATH", "")
    env = {"PYTHONPATH": f"{path}:{clean_env['PYTHONPATH']}"}
    if "MLC_LIBRARY_PATH" in os.environ:
        env["MLC_LIBRARY_PATH"] = os.environ["MLC_LIBRARY_PATH"]
    done = llmprof(
        *("--engine", f"mlc:model={folder}", "--engine", f"mlc:model={folder},drive=vm"),
        *("--prompt-len", "20", "--decode-len", "12", "--batch", "2", "--rounds", "2"),
        *("--traced-steps", "4", "--headless", "--json"),
        env=env,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [e["info"]["drive"] for e in report["engines"]] == ["serve", "vm"]
    assert report["agreement"][0]["common_prefix"] == 13


def test_a_kv_cache_that_does_not_fit(folder: Path, engine_of: str) -> None:
    with pytest.raises(OutOfMemory, match=r"need \d+ MiB, \d+ MiB are free on cpu"):
        load(folder, lib=str(folder / "tiny.so"), drive="serve", kv_tokens="400000000")
