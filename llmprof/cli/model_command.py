"""``llmprof model synth | prepare``: models for the ExLlama engines and MLC LLM."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.errors import EXIT_OK, MissingPackage, UsageError
from llmprof.plaintext import one_line

if TYPE_CHECKING:
    from llmprof.models.exllama.shapes import EngineName

EXLLAMA = ("exllama", "exllamav2", "exllamav3")
ENGINES = (*EXLLAMA, "mlc", "transformers")
_BAR = 24
_ONLY_MLC = {
    "lib": "--lib",
    "vocab": "--vocab",
    "quantization": "--quantization",
    "artifact_path": "--artifact-path",
    "python": "--python",
    "target": "--target",
    "conv_template": "--conv-template",
    "context_window_size": "--context-window-size",
    "max_batch_size": "--max-batch-size",
}
_ONLY_EXLLAMA = {
    "config": "--config",
    "bits": "--bits",
    "head_bits": "--head-bits",
    "format": "--format",
    "group_size": "--group-size",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``model`` reads. Only argparse is needed for this."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="synth|prepare")
    synth = actions.add_parser("synth", help="random weights in an engine's own format")
    synth.add_argument("preset", nargs="?", help="llama2-7b, tiny-128, …")
    synth.add_argument("--config", metavar="FILE", help="the shape of this config.json instead")
    synth.add_argument("--bits", help="of the layers: 4 (default), or mix (exl2: 5, 4 and 3)")
    synth.add_argument("--head-bits", type=int, metavar="N", help="of lm_head (16)")
    synth.add_argument("--seed", type=int, default=0, metavar="S")
    synth.add_argument(
        "--lib", metavar="LIB.so", help="mlc: the library that will load the weights"
    )
    synth.add_argument("--vocab", type=int, metavar="N", help="mlc: where no preset is named")
    prepare = actions.add_parser("prepare", help="real weights for an engine")
    prepare.add_argument("--from", dest="source", required=True, metavar="GGUF|DIR")
    mlc = prepare.add_argument_group("mlc: runs MLC LLM's gen_config, convert_weight and compile")
    mlc.add_argument("--quantization", metavar="Q", help="q4f16_1 (default), q0f16, …")
    mlc.add_argument("--artifact-path", metavar="DIR", help="./dist")
    mlc.add_argument("--target", metavar="DEVICE", help="cuda (default), cpu, …")
    mlc.add_argument("--conv-template", metavar="NAME", help="LM")
    mlc.add_argument("--context-window-size", type=int, metavar="N")
    mlc.add_argument("--max-batch-size", type=int, metavar="N")
    mlc.add_argument("--python", metavar="PYTHON", help="the interpreter that has mlc_llm")
    for action in (synth, prepare):
        action.add_argument("--engine", required=True, choices=ENGINES)
        action.add_argument("--format", choices=("gptq", "exl2", "exl3", "fp16", "fp32"))
        action.add_argument("--group-size", type=int, metavar="N", help="of gptq: 128, 64, 32")
        action.add_argument("-o", "--output", metavar="DIR")


def model(arguments: argparse.Namespace) -> int:
    """Make the model folder, say on stdout what it is."""
    try:
        import numpy  # noqa: F401 - asked for here so that its absence is one line
    except ImportError as why:
        raise MissingPackage(f"llmprof model needs numpy ({why})") from None
    mlc = arguments.engine == "mlc"
    for name, option in (_ONLY_EXLLAMA if mlc else _ONLY_MLC).items():
        if getattr(arguments, name, None) is not None:
            others = "the ExLlama engines" if mlc else "--engine mlc"
            raise UsageError(f"{option} is for {others}")
    if mlc and arguments.action == "prepare":
        return _prepare_mlc(arguments)
    if not arguments.output:
        raise UsageError("name the folder to write: -o DIR")
    if mlc:
        return _synth_mlc(arguments)
    if arguments.engine == "transformers" and arguments.action == "synth":
        raise UsageError(
            "transformers makes random weights itself: --engine transformers --model PRESET, or"
            " --model config.json"
        )
    return _synth(arguments) if arguments.action == "synth" else _prepare(arguments)


def _synth(arguments: argparse.Namespace) -> int:
    from llmprof.models import synth

    engine: EngineName = arguments.engine
    config = synth.find_config(arguments.preset, arguments.config)
    request = synth.SynthRequest(
        config=config,
        engine=engine,
        format=arguments.format or synth.default_format(engine),
        bits=_bits("4" if arguments.bits is None else arguments.bits),
        head_bits=16 if arguments.head_bits is None else arguments.head_bits,
        group_size=128 if arguments.group_size is None else arguments.group_size,
        seed=arguments.seed,
    )
    target = Path(arguments.output)
    begin = time.monotonic()
    with _Bar() as bar:
        size = synth.synthesise(request, target, bar.told)
    what = f"random {request.format} for {engine}"
    print(f"{_shown(target)}: {what}, {size / 1e9:.2f} GB in {time.monotonic() - begin:.0f} s")
    return EXIT_OK


def _synth_mlc(arguments: argparse.Namespace) -> int:
    from llmprof.engines.mlc.tvm import open_library
    from llmprof.models.mlc import synth as mlc_synth
    from llmprof.models.mlc.library import inspect_library
    from llmprof.models.presets import PRESETS

    if not arguments.lib:
        raise UsageError("--engine mlc: name the compiled library with --lib LIB.so")
    if arguments.preset is not None and arguments.preset not in PRESETS:
        raise UsageError(
            f"unknown preset {one_line(arguments.preset, 40)!r};"
            f" presets: {', '.join(sorted(PRESETS))}"
        )
    shape = PRESETS[arguments.preset] if arguments.preset is not None else None
    library = inspect_library(arguments.lib)
    metadata = open_library(library)
    vocab = arguments.vocab or (shape.vocab_size if shape else metadata.active_vocab_size)
    if shape is not None:
        metadata.check_shape(shape, arguments.preset, library.shown)
    if not vocab or vocab < 0:
        raise UsageError(f"{library.shown} leaves the vocabulary open; say it with --vocab N")
    target = Path(arguments.output)
    begin = time.monotonic()
    with _Bar() as bar:
        size = mlc_synth.synthesise(metadata, shape, vocab, arguments.seed, target, bar.told)
    what = f"random {metadata.quantization} for mlc"
    print(f"{_shown(target)}: {what}, {size / 1e9:.2f} GB in {time.monotonic() - begin:.0f} s")
    return EXIT_OK


def _prepare_mlc(arguments: argparse.Namespace) -> int:
    from llmprof.config import load_config
    from llmprof.models.mlc import prepare as mlc_prepare

    if arguments.output:
        raise UsageError("--engine mlc writes several things: name a folder with --artifact-path")
    python = arguments.python or load_config().pythons.get("mlc") or sys.executable
    request = mlc_prepare.MlcRequest(
        source=Path(arguments.source).expanduser(),
        quantization=arguments.quantization or "q4f16_1",
        artifacts=Path(arguments.artifact_path or "./dist"),
        target=arguments.target or "cuda",
        python=python,
        conv_template=arguments.conv_template or "LM",
        context_window_size=arguments.context_window_size,
        max_batch_size=arguments.max_batch_size,
    )
    with _Bar() as bar:
        done = mlc_prepare.prepare(request, bar.told, bar.say)
    print(f"{_shown(done.folder)}: {request.quantization} for mlc")
    print(f"{_shown(done.library)}: library for {request.target}")
    return EXIT_OK


def _prepare(arguments: argparse.Namespace) -> int:
    from llmprof.models import prepare

    target = Path(arguments.output)
    with _Bar() as bar:
        done = prepare.prepare(
            arguments.source,
            arguments.engine,
            arguments.format,
            arguments.group_size,
            target,
            bar.told,
        )
    group = f", group {done.group_size}" if done.group_size else ""
    size = f"{done.n_bytes / 1e9:.2f} GB"
    print(f"{_shown(target)}: {done.format}{group} for {arguments.engine}, {size}")
    if done.group_size:
        print(f"llmprof: {prepare.RTN_NOTE}", file=sys.stderr)
    if done.padding:
        print(f"llmprof: {done.padding}", file=sys.stderr)
    if done.tokenizer:
        print(f"llmprof: no tokenizer: {one_line(done.tokenizer)}", file=sys.stderr)
    return EXIT_OK


def _bits(text: str) -> int | None:
    if text == "mix":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--bits {one_line(text, 20)}: expected a number or mix") from None


def _shown(path: Path) -> str:
    return one_line(str(path))


class _Bar:
    """Progress on stderr in a terminal, silence in a pipe."""

    def __enter__(self) -> _Bar:
        self._tty = sys.stderr.isatty()
        self._told = 0.0
        return self

    def told(self, what: str, share: float) -> None:
        if not self._tty or time.monotonic() - self._told < 0.1:
            return
        self._told = time.monotonic()
        full = int(_BAR * share)
        line = f"[{'#' * full}{'.' * (_BAR - full)}] {what} {share:.0%}"
        sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()

    def say(self, line: str) -> None:
        """A line that stays, in a pipe too."""
        sys.stderr.write(f"{chr(13)}{chr(27)}[K" if self._tty else "")
        print(f"llmprof: {line}", file=sys.stderr, flush=True)

    def __exit__(self, *why: Any) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
