"""What is known of a load when its drive is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.mlc.model import MlcModel
from llmprof.engines.mlc.tvm import Tvm
from llmprof.models.mlc.library import Library
from llmprof.models.mlc.metadata import MlcMetadata


@dataclass(frozen=True)
class Opening:
    """One load on its way: what was asked for, what is known."""

    request: LoadRequest
    progress: Progress
    library: Library
    metadata: MlcMetadata
    model: MlcModel
    tvm: Tvm
    module: Any
    device: Any
    device_name: str
    kv_tokens: int
    kv_kind: str
    phases: bool

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size
