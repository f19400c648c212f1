"""``llmprof record`` run as a user runs it, over the stub libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import recorder_build

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build as build_report
from llmprof.analysis.view.traced import load_trace
from llmprof.records import RunData


class Record:
    """Runs the command in a folder of its own."""

    def __init__(self, built: recorder_build.Built, cache: Path, folder: Path) -> None:
        self.built = built
        self.folder = folder
        self.output = folder / "run.sqlite"
        self.program = str(built.program)
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(built.folder),
            "XDG_CACHE_HOME": str(cache),
        }

    def start(
        self, *arguments: str, options: tuple[str, ...] = (), **more: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmprof", "record", "-o", str(self.output), *options]
        return subprocess.Popen(
            [*command, "--", *arguments],
            env={**self.environment, **more},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, options: tuple[str, ...] = (), **more: str) -> tuple[int, str]:
        """Exit code and stderr."""
        process = self.start(*arguments, options=options, **more)
        _, said = process.communicate(timeout=120)
        assert "Traceback" not in said, said
        return process.returncode, said

    def data(self) -> RunData:
        return open_run(self.output)

    def left(self) -> list[str]:
        """Files beside the run file: none of ours may stay."""
        return sorted(p.name for p in self.folder.iterdir() if p != self.output)


def kernels(data: RunData, label: str) -> KernelReport:
    trace = load_trace(build_report(data), data)
    assert trace is not None
    report = trace.engine(label).kernels
    assert isinstance(report, KernelReport)
    return report
