"""MLC LLM's own steps from a Hugging Face folder to weights and a library: gen_config,
convert_weight, compile. They run in the interpreter that has mlc_llm; what they say is kept.
The source is only read: the steps see links to it (``source.py``). Standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmprof.errors import EngineFailure, MissingPackage, UsageError
from llmprof.models.locate import CACHE_FILES, MLC_CONFIG
from llmprof.models.mlc.source import (
    check_converted,
    check_kept,
    linked,
    open_source,
    remember_source,
)
from llmprof.newfiles import alone
from llmprof.plaintext import one_line

GET_MLC = (
    "MLC LLM is not on PyPI (the packages of that name are empty); get it with: pip install --pre"
    " -f https://mlc.ai/wheels mlc-llm-nightly-cu130 mlc-ai-nightly-cu130"
)
Told = Callable[[str, float], None]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TQDM = re.compile(rb"(\d{1,3})%\|")
_COMPILE_MARKS = (
    b"Exporting the model to TVM compiler",
    b"Running TVM Relax graph-level optimizations",
    b"Lowering to TVM TIR kernels",
    b"Running TVM TIR-level optimizations",
    b"Running TVM Dlight low-level optimizations",
    b"Lowering to VM bytecode",
    b"Compiling external modules",
    b"Compilation complete",
)
"""Lines of compiler_pass/pipeline.py, in order."""


@dataclass(frozen=True)
class MlcRequest:
    """What to prepare."""

    source: Path
    quantization: str
    artifacts: Path
    target: str
    python: str
    """An interpreter with mlc_llm."""
    conv_template: str = "LM"
    context_window_size: int | None = None
    max_batch_size: int | None = None


@dataclass(frozen=True)
class MlcPrepared:
    """Where things lie; ``kept`` names the steps whose results were there already."""

    folder: Path
    library: Path
    kept: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    name: str
    arguments: list[str]
    product: Path
    """Written last by the step, so its presence means that the step is done."""
    log: Path


def prepare(request: MlcRequest, told: Told, say: Callable[[str], None]) -> MlcPrepared:
    """Run the steps whose results are not there yet.

    Args:
        told: the share of the step that runs.
        say: one line as each step begins.

    Raises:
        UsageError: a name that is no plain word.
        ModelError: the source is no Hugging Face folder of safetensors, or has something that MLC
            LLM would leave out.
        MissingPackage: ``python`` has no mlc_llm.
        EngineFailure: a step failed; the line names its log.
    """
    for option, word in (("--quantization", request.quantization), ("--target", request.target)):
        if not _NAME.fullmatch(word):
            raise UsageError(f"{option} {one_line(word, 40)}: expected a plain name")
    _check_python(request.python)
    source = open_source(request.source)
    stem = f"{source.name}-{request.quantization}"
    folder = request.artifacts / f"{stem}-MLC"
    library = request.artifacts / "libs" / f"{stem}-{request.target}.so"
    logs = request.artifacts / "logs"
    try:
        for place in (folder, library.parent, logs):
            place.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise UsageError(f"{one_line(str(request.artifacts))}: {why.strerror or why}") from None
    partial = library.with_name(f"partial-{library.name}")
    quantized = ["--quantization", request.quantization]
    limits = []
    for name in ("context_window_size", "max_batch_size"):
        value = getattr(request, name)
        limits += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    check_kept(source, folder, request.quantization)
    kept = []
    with _alone(logs / f"{stem}.lock"), linked(source, request.artifacts) as seen:
        steps = (
            _Step(
                "gen_config",
                [
                    *("gen_config", str(seen), *quantized),
                    *("--conv-template", request.conv_template, *limits, "-o", str(folder)),
                ],
                folder / MLC_CONFIG,
                logs / f"{stem}-gen_config.log",
            ),
            _Step(
                "convert_weight",
                [
                    *("convert_weight", str(seen), *quantized),
                    # Never pickle: it could run code.
                    *("--source-format", "huggingface-safetensor", "-o", str(folder)),
                ],
                folder / CACHE_FILES[0],
                logs / f"{stem}-convert_weight.log",
            ),
            _Step(
                "compile",
                [
                    *("compile", str(folder / MLC_CONFIG), "--device", request.target),
                    *("-o", str(partial)),
                ],
                library,
                logs / f"{stem}-{request.target}-compile.log",
            ),
        )
        for number, step in enumerate(steps, 1):
            label = f"{step.name} ({number} of {len(steps)})"
            if step.product.is_file():
                kept.append(step.name)
                say(f"{label}: kept, {one_line(str(step.product))} is there")
                continue
            say(f"{label}: log in {one_line(str(step.log))}")
            made = partial if step.name == "compile" else step.product
            _run(request.python, step, made, label, told)
            if step.name == "convert_weight":
                check_converted(source, step.product, step.log)
                remember_source(source, step.product, request.quantization)
            if made is not step.product:
                made.rename(step.product)
    return MlcPrepared(folder, library, tuple(kept))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two at once would write the same files.

    Raises:
        UsageError: another llmprof is at it.
    """
    try:
        with alone(lock):
            yield
    except BlockingIOError:
        raise UsageError(
            f"another llmprof makes the same model there ({one_line(str(lock))} is locked);"
            " wait for it, or name another --artifact-path"
        ) from None


def _check_python(python: str) -> None:
    """Asked in that interpreter; a package that is there may still fail, which its step says."""
    ask = "import importlib.util as u, sys; sys.exit(u.find_spec('mlc_llm') is None)"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        raise UsageError(f"{one_line(python)}: {one_line(str(why), 120)}") from None
    if done.returncode:
        raise MissingPackage(
            f"mlc_llm is not installed for {one_line(python)}; {GET_MLC}; or name the interpreter"
            " that has it with --python"
        )


def _run(python: str, step: _Step, made: Path, label: str, told: Told) -> None:
    """One step to its end; its output goes to the log as it comes.

    Raises:
        EngineFailure: it failed, or left no result.
    """
    shown = one_line(str(step.log))
    command = [python, "-u", "-m", "mlc_llm", *step.arguments]
    with step.log.open("wb") as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        last = b""
        share = 0.0
        try:
            told(label, share)
            # tqdm ends its lines with \r, so pieces as they come and not lines.
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                log.write(piece)
                log.flush()
                last = (last + piece)[-4096:]
                share = max(share, _share(step.name, piece))
                told(label, share)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code < 0:
        raise EngineFailure(
            f"mlc_llm {step.name} was killed by signal {-code} (9 is mostly a lack of memory);"
            f" log: {shown}"
        )
    if code:
        raise EngineFailure(
            f"mlc_llm {step.name} failed with exit code {code}: {_last_line(last)}; log: {shown}"
        )
    if not made.is_file():
        raise EngineFailure(
            f"mlc_llm {step.name} ended without {one_line(made.name)}; log: {shown}"
        )


def _share(step: str, piece: bytes) -> float:
    if step == "compile":
        seen = [i for i, mark in enumerate(_COMPILE_MARKS, 1) if mark in piece]
        return max(seen, default=0) / len(_COMPILE_MARKS)
    marks = _TQDM.findall(piece)
    return min(1.0, int(marks[-1]) / 100) if marks else 0.0


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return one_line(lines[-1], 160) if lines else "it said nothing"
