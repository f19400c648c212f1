"""``llmprof model synth | prepare``: models for the ExLlama engines."""

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
    from llmprof.models.exllama_shapes import EngineName

ENGINES = ("exllama", "exllamav2", "exllamav3")
_BAR = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``model`` reads. Only argparse is needed for this."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="synth|prepare")
    synth = actions.add_parser("synth", help="random weights in an engine's own format")
    synth.add_argument("preset", nargs="?", help="llama2-7b, tiny-128, …")
    synth.add_argument("--config", metavar="FILE", help="the shape of this config.json instead")
    synth.add_argument("--bits", default="4", help="of the layers: 4, or mix (exl2: 5, 4 and 3)")
    synth.add_argument("--head-bits", type=int, default=16, metavar="N", help="of lm_head (16)")
    synth.add_argument("--seed", type=int, default=0, metavar="S")
    prepare = actions.add_parser("prepare", help="real weights for an engine")
    prepare.add_argument("--from", dest="source", required=True, metavar="GGUF|DIR")
    for action in (synth, prepare):
        action.add_argument("--engine", required=True, choices=ENGINES)
        action.add_argument("--format", choices=("gptq", "exl2", "exl3", "fp16"))
        action.add_argument("--group-size", type=int, metavar="N", help="of gptq: 128, 64, 32")
        action.add_argument("-o", "--output", required=True, metavar="DIR")


def model(arguments: argparse.Namespace) -> int:
    """Make the model folder, say on stdout what it is."""
    try:
        import numpy  # noqa: F401 - asked for here so that its absence is one line
    except ImportError as why:
        raise MissingPackage(f"llmprof model needs numpy ({why})") from None
    return _synth(arguments) if arguments.action == "synth" else _prepare(arguments)


def _synth(arguments: argparse.Namespace) -> int:
    from llmprof.models import synth

    engine: EngineName = arguments.engine
    config = synth.find_config(arguments.preset, arguments.config)
    request = synth.SynthRequest(
        config=config,
        engine=engine,
        format=arguments.format or synth.default_format(engine),
        bits=_bits(arguments.bits),
        head_bits=arguments.head_bits,
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

    def __exit__(self, *why: Any) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
