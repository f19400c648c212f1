"""``--capture nsys``: the traced pass under a real nsys; a machine without one says so."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llmprof.runfile.reader import RunFileReader
from llmprof.session import nsys_capture

NSYS = shutil.which("nsys")
RUN = ("--engine", "fake", "--prompt-len", "4", "--decode-len", "8", "--rounds", "2",
       "--traced-steps", "4", "--capture", "nsys", "-o", "run.sqlite", "--headless")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(NSYS is None, reason="nsys is not installed")
def test_the_report_stands_beside_the_run(tmp_path: Path, llmprof: Any) -> None:
    done = llmprof(*RUN)
    assert done.returncode == 0, done.stderr
    with RunFileReader(tmp_path / "run.sqlite") as reader:
        data = reader.run_data()
    (traced,) = [r for r in data.rounds if r.pass_name == "traced"]
    assert traced.steps == 4 and traced.pid == data.engines[0].traced_pid
    assert traced.pid != data.engines[0].pid
    missing = [m for m in data.missing if m.name == "nsys-rep"]
    assert [m.reason for m in data.missing if m.name == "host"] == [
        "nsys has the worker to itself (--capture)"
    ]
    made = tmp_path / "run.fake.nsys-rep"
    # Without the importer of Debian's package the raw file is kept and the run says so.
    assert made.is_file() or (missing and (tmp_path / "run.fake.qdstrm").is_file())


def test_no_nsys_is_one_line(tmp_path: Path, llmprof: Any) -> None:
    done = llmprof(*RUN, env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == (
        "llmprof: --capture nsys: there is no nsys on PATH (install Nsight Systems)\n"
    )
    assert not (tmp_path / "run.sqlite").exists()


SEEN = (0, 2, 11)


def test_the_version_of_nvtx_is_the_workers(tmp_path: Path) -> None:
    known = nsys_capture.nvtx_version(sys.executable)
    assert known == tuple(map(int, metadata.version("nvtx").split(".")))
    for python in (script(tmp_path / "none", "exit 1"), str(tmp_path / "missing")):
        assert nsys_capture.nvtx_version(python) == nsys_capture.SILENT_NVTX


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_newer_nsys_records_the_round_only(tmp_path: Path) -> None:
    target = tmp_path / "x.nsys-rep"
    old = nsys_capture.command(script(tmp_path / "old", "echo version 2023.4.4"), target, SEEN)
    newer = script(tmp_path / "new", "echo version 2025.1.1")
    new = nsys_capture.command(newer, target, SEEN)
    assert not any("capture-range" in option for option in old)
    assert "--nvtx-capture=round 0@llmprof" in new
    # Ranges that nsys does not see would capture nothing.
    silent = nsys_capture.command(newer, target, nsys_capture.SILENT_NVTX)
    assert not any("capture-range" in option for option in silent)
    assert "--cuda-graph-trace=node" in old and "--cuda-graph-trace=node" in new
