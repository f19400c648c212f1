"""A file that was opened, with everything a report needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import jsonschema

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import EngineTrace, RunTrace, all_warnings
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document
from llmprof.records import (
    RunData,
)
from llmprof.records.steps import (
    StepChoice,
)


class Opened:
    """A capture with everything a report needs."""

    def __init__(self, path: Path, step_range: str | None = None) -> None:
        how: Literal["auto", "ranges"] = "ranges" if step_range else "auto"
        self.data: RunData = open_run(path, StepChoice(how, step_range))
        self.trace = RunTrace(path, self.data)
        self.report = build(self.data)

    @property
    def first(self) -> EngineTrace:
        return self.trace.engines[0]

    @property
    def kernels(self) -> KernelReport:
        found = self.first.kernels
        assert isinstance(found, KernelReport)
        return found

    @property
    def busy_idle(self) -> tuple[float, float]:
        busy, idle = self.kernels.busy_ms_per_step, self.kernels.idle_ms_per_step
        assert isinstance(busy, float) and isinstance(idle, float)
        return round(busy, 6), round(idle, 6)

    @property
    def warnings(self) -> str:
        return "\n".join(f"{w.scope}: {w.text}" for w in all_warnings(self.report, self.trace))

    def document(self) -> dict:
        made = to_document(self.report, self.data, self.trace)
        jsonschema.validate(made, json.loads(schema.text()))
        return made
