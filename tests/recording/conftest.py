"""The stub libraries are compiled once, and so is the recorder that the command compiles."""

from __future__ import annotations

from pathlib import Path

import pytest
import recorder_build
from record_command import Record


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> recorder_build.Built:
    if recorder_build.compiler() is None:
        pytest.skip("no C compiler to build the recorder with")
    return recorder_build.make(tmp_path_factory.mktemp("stubs"), ("-g",))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def record(built: recorder_build.Built, cache: Path, tmp_path: Path) -> Record:
    return Record(built, cache, tmp_path)
