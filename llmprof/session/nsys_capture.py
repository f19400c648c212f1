"""``--capture nsys``: the traced pass under ``nsys profile``, whose file goes beside the run.

Debian's package lays its folders out so that ``nsys profile`` does not find its own importer and
leaves a ``.qdstrm``; the importer, called by its path, turns it into a ``.nsys-rep``.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from llmprof.plaintext import one_line
from llmprof.records import Unavailable

END_TIMEOUT_S = 300.0
"""nsys writes its file after the worker has ended."""
IMPORTERS = (
    Path("/usr/lib/nsight-systems/host-linux-x64/QdstrmImporter"),
    Path("/usr/lib/x86_64-linux-gnu/nsight-systems/host-linux-x64/QdstrmImporter"),
)
WITH_RANGE = (2024, 1)
"""From this version on the capture is limited to the traced round by its NVTX range."""
SILENT_NVTX = (0, 2, 12)
"""From this version on no range of the Python package nvtx arrives at nsys 2022.4, 2023.4 or 2024.2
(only its domain does): limited to a range, they would capture nothing. Newer nsys: not known."""


def capture_path(output: Path, label: str) -> Path:
    """``run.sqlite``, ``torch:cuda_graph=1`` → ``run.torch_cuda_graph_1.nsys-rep``."""
    plain = re.sub(r"[^\w.-]+", "_", label)
    return output.with_name(f"{output.stem}.{plain}.nsys-rep")


def version(nsys: str) -> tuple[int, int]:
    """(year, number); (0, 0) where nsys does not say."""
    try:
        done = subprocess.run(
            [nsys, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    match = re.search(r"(\d{4})\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def nvtx_version(python: str) -> tuple[int, ...]:
    """Of the package nvtx in an engine's environment; ``SILENT_NVTX`` where that is not known."""
    code = "import importlib.metadata as m; print(m.version('nvtx'))"
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return SILENT_NVTX
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, match.groups())) if match else SILENT_NVTX


def command(nsys: str, target: Path, nvtx: tuple[int, ...]) -> list[str]:
    """What to put before the worker's command line. Sampling is off: 2022.4 hangs with it.

    Args:
        nvtx: ``nvtx_version`` of the worker.
    """
    options = ["profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none"]
    options += ["--force-overwrite=true", f"--output={target.with_suffix('')}"]
    found = version(nsys)
    if found >= (2022, 1):
        options.append("--cuda-graph-trace=node")
    if found >= WITH_RANGE and nvtx < SILENT_NVTX:
        options += ["--capture-range=nvtx", "--nvtx-capture=round 0@llmprof"]
        options += ["--capture-range-end=stop", "--kill=none"]
        options.append("--env-var=NSYS_NVTX_PROFILER_REGISTER_ONLY=0")
    return [nsys, *options]


def finish(output: Path, label: str) -> Path | Unavailable:
    """The report of an engine that has ended, imported if nsys left that to us."""
    target = capture_path(output, label)
    raw = target.with_suffix(".qdstrm")
    if not target.is_file() and raw.is_file():
        importer = next((path for path in IMPORTERS if path.exists()), None)
        if importer is None:
            return Unavailable(f"nsys left {one_line(raw.name)}: open it in nsys-ui to import it")
        try:
            subprocess.run(
                [str(importer), "-i", str(raw)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=END_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as why:
            return Unavailable(f"{one_line(raw.name)} was not imported: {one_line(str(why))}")
        if target.is_file():
            raw.unlink()
    return target if target.is_file() else Unavailable("nsys made no file: see the engine's log")
