"""Finding and building the extensions, without a GPU or a CUDA compiler."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from llmprof.engines.exllama import extension_build
from llmprof.engines.exllama.extension_build import extension_folder, extension_import
from llmprof.engines.exllama.heartbeat import heartbeat
from llmprof.errors import EngineFailure, UsageError

pytest.importorskip("torch", reason="the package torch is not installed")
NAME = "llmprof_no_such_ext"


def quiet(phase: str, share: float | None) -> None: ...


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv(extension_build.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch"))
    yield
    sys.modules.pop(NAME, None)


def test_without_nvcc_it_is_one_line(monkeypatch) -> None:
    from torch.utils import cpp_extension

    for home in (None, "/no/cuda"):
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
        with pytest.raises(UsageError) as caught, extension_import("e", NAME, "f", quiet):
            pass
        assert "nvcc" in str(caught.value)
        assert extension_build.FOLDER_VARIABLE in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_ready_made_extension_that_does_not_load(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv(extension_build.FOLDER_VARIABLE, str(tmp_path))
    file = tmp_path / "f" / f"{NAME}.so"
    file.parent.mkdir()
    file.write_bytes(b"not an ELF file")
    with (
        pytest.raises(UsageError, match="does not load"),
        extension_import("exllamav2", NAME, "f", quiet),
    ):
        pass


def toolchain(monkeypatch, tmp_path: Path) -> None:
    """A CUDA_HOME with something called nvcc in it."""
    from torch.utils import cpp_extension

    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "cuda" / "bin" / "nvcc").write_text("")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(extension_build.shutil, "which", lambda name: f"/usr/bin/{name}")


def test_a_failed_build_shows_the_compilers_last_lines(monkeypatch, tmp_path, capsys) -> None:
    from torch.utils import cpp_extension

    toolchain(monkeypatch, tmp_path)

    def load(name: str, sources: list[str]) -> None:
        raise RuntimeError(
            "Error building extension 'x': [1/2] nvcc a.cu\na.cu(3): error: no \x1b[2J type\n"
            "1 error detected in the compilation\nninja: build stopped: subcommand failed."
        )

    monkeypatch.setattr(cpp_extension, "load", load)
    with (
        pytest.raises(EngineFailure) as caught,
        extension_import("exllamav2", NAME, "f", quiet),
    ):
        cpp_extension.load(NAME, ["a.cu"])
    text = str(caught.value)
    assert "a.cu(3): error: no" in text and "\n" not in text and "\x1b" not in text
    assert "ninja: build stopped" in capsys.readouterr().err
    assert cpp_extension.load is load


def test_what_load_built_can_be_imported_by_name(monkeypatch, tmp_path) -> None:
    """ExLlama v1 does ``from exllama_ext import …`` right after ``load``."""
    from types import ModuleType

    from torch.utils import cpp_extension

    toolchain(monkeypatch, tmp_path)
    told: list[tuple[str, float | None]] = []
    monkeypatch.setattr(cpp_extension, "load", lambda name, sources, **more: ModuleType(name))
    with extension_import("exllama", NAME, "f", lambda *what: told.append(what)):
        module = cpp_extension.load(NAME, sources=["a.cu", "b.cu"], verbose=False)
        assert __import__(NAME) is module
        assert cpp_extension.load(NAME, sources=[]) is module
    assert told[0] == ("building the CUDA extension, first use takes minutes", 0.0)


def test_the_lock_of_a_killed_build_goes(tmp_path: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    lock = build / "lock"
    lock.write_text("")
    extension_build._drop_stale_lock(build)
    assert lock.exists()  # somebody may be building
    old = time.time() - 3600
    os.utime(lock, (old, old))
    extension_build._drop_stale_lock(build)
    assert not lock.exists()


def test_the_folder_names_everything_an_extension_is_bound_to() -> None:
    import torch

    name = extension_folder("exllamav2", "0.3.2", (9, 0))
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    assert name == f"exllamav2-0.3.2-{python}-torch{torch.__version__}-sm90"


def test_a_heartbeat_ends_with_its_block(monkeypatch) -> None:
    from llmprof.engines.exllama import heartbeat as module

    monkeypatch.setattr(module, "_PERIOD_S", 0.01)
    told: list[float | None] = []
    with heartbeat(lambda phase, share: told.append(share), "busy", lambda: 0.5):
        deadline = time.monotonic() + 10
        while len(told) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    count = len(told)
    assert count >= 3 and set(told) == {0.5}
    time.sleep(0.05)
    assert len(told) == count
