"""Recorder and stub libraries, compiled once, with ASan and UBSan in them."""

from __future__ import annotations

import pytest
import recorder_build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> recorder_build.Built:
    if recorder_build.compiler() is None:
        pytest.skip("no C compiler to build the recorder with")
    return recorder_build.make(tmp_path_factory.mktemp("recorder"))
