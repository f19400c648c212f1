"""From arguments and config files to a plan: models found, prompt made, limits checked."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from llmprof.config import Config, EngineSpec, labels, load_config, parse_engine
from llmprof.engines.registry import BUILT_IN, check_name
from llmprof.errors import LlmprofError, ModelError, UsageError
from llmprof.goal import Goal, seconds_of, share_of
from llmprof.models.locate import RANDOM, ModelRef, default_model, resolve
from llmprof.models.tokenizer import Tokenizer, load_tokenizer
from llmprof.newfiles import first_free
from llmprof.plaintext import one_line
from llmprof.records import BandwidthLevel, Unavailable
from llmprof.session.plan import Plan
from llmprof.tracers.pyspy.tracer import MAX_RATE_HZ, HostPlan, default_rate_hz
from llmprof.workload import PROMPT_ID_FLOOR, Workload, read_ids, seeded_ids

DEFAULT_PROMPT = (
    "A profiler is a tool that shows where a program spends its time. "
    "The best way to find out why a program is slow is"
)
MOST_PROCESSES = 200
SMALL_VOCABULARY = 1000
"""Seeded ids stay below this when no model says how large its vocabulary is."""


@dataclass(frozen=True)
class Prepared:
    plan: Plan
    decode: Callable[[list[int]], str] | None
    """Token ids → text, where there is a tokenizer."""


def prepare(arguments: argparse.Namespace) -> Prepared:
    """Check everything that can be checked before a worker starts.

    Raises:
        UsageError: one line for the first thing that is wrong.
    """
    config = load_config()
    texts = arguments.engine or config.run.get("engine") or ["torch"]
    specs = [parse_engine(str(text), config) for text in texts]
    if tp := _setting(arguments, config, "tp", None):
        # An engine that cannot be split refuses the option itself, by name.
        specs = [replace(s, options={"tp": str(tp), **s.options}) for s in specs]
    for spec in specs:
        if spec.python == _own_python():
            check_name(spec.name)
    asked = str(_setting(arguments, config, "model", ""))
    refs = [_resolve(spec, asked) for spec in specs]
    tokenizer = _tokenizer(refs)
    workload = _workload(arguments, config, refs, tokenizer)
    _check_context(workload, specs, refs)
    plan = Plan(
        workload=workload,
        engines=tuple(specs),
        labels=tuple(labels(specs)),
        models=tuple(_model_text(ref) for ref in refs),
        output=_output(arguments.output),
        trace_level=_setting(arguments, config, "trace", "kernels"),  # type: ignore[arg-type]
        bandwidth=_bandwidth(arguments, config),
        capture=_capture(arguments),
        host=_host(arguments, config),
        command=("llmprof", *arguments.argv),
        goal=_goal(arguments, config),
        adapt=arguments.decode_len is None and "decode_len" not in config.run,
        stall_timeout_s=float(arguments.timeout),
    )
    decode = None if isinstance(tokenizer, Unavailable) else tokenizer.decode
    return Prepared(plan, decode)


def _capture(arguments: argparse.Namespace) -> str:
    """The nsys of ``--capture nsys``; empty without it."""
    if not arguments.capture:
        return ""
    from shutil import which

    found = which("nsys")
    if found is None:
        raise UsageError("--capture nsys: there is no nsys on PATH (install Nsight Systems)")
    return found


def _bandwidth(arguments: argparse.Namespace, config: Config) -> BandwidthLevel:
    asked = str(_setting(arguments, config, "bandwidth", "kernels"))
    for level in get_args(BandwidthLevel):
        if asked == level:
            return cast(BandwidthLevel, level)
    known = ", ".join(get_args(BandwidthLevel))
    raise UsageError(f"[run] bandwidth = {asked!r} in the config file; known: {known}")


def _host(arguments: argparse.Namespace, config: Config) -> HostPlan:
    asked = [o for o in ("host_native", "host_blocking", "host_rate") if getattr(arguments, o)]
    none = "--no-host" if arguments.no_host else ""
    none = "--trace steps" if arguments.trace == "steps" else none
    if asked and none:
        option = f"--{asked[0].replace('_', '-')}"
        raise UsageError(f"{option} is about host stacks, which {none} leaves out")
    if arguments.no_host:
        return HostPlan(rate_hz=0)
    usual = default_rate_hz(arguments.host_native, arguments.host_blocking)
    rate = int(_setting(arguments, config, "host_rate", usual))  # type: ignore[call-overload]
    if not 0 <= rate <= MAX_RATE_HZ:
        raise UsageError(f"host_rate {rate}: give 0 to {MAX_RATE_HZ} samples a second")
    return HostPlan(rate, native=arguments.host_native, blocking=arguments.host_blocking)


def _goal(arguments: argparse.Namespace, config: Config) -> Goal:
    """A number of rounds wins over a time that is only in the config file."""
    timed = [k for k in ("precision", "max_time") if getattr(arguments, k) is not None]
    if timed and arguments.rounds is not None:
        raise UsageError(
            f"--rounds is exact: it goes without --{timed[0].replace('_', '-')}"
            " (leave one of them out)"
        )
    rounds = arguments.rounds
    if rounds is None and not timed:
        rounds = config.run.get("rounds")
    usual = "auto" if rounds is None else "1"
    return Goal(
        rounds=rounds,
        precision=_precision(str(_setting(arguments, config, "precision", "1%"))),
        max_s=_seconds(str(_setting(arguments, config, "max_time", "60s"))),
        processes=_processes(str(_setting(arguments, config, "processes", usual))),
    )


def _precision(text: str) -> float:
    share = share_of(text)
    if share is None:
        raise UsageError(f"--precision {one_line(text, 40)}: give per cent, such as 1% or 0.5%")
    return share


def _seconds(text: str) -> float:
    seconds = seconds_of(text)
    if seconds is None:
        raise UsageError(f"--max-time {one_line(text, 40)}: give a time, such as 60s or 5m")
    return seconds


def _processes(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PROCESSES:
        raise UsageError(f"--processes {one_line(text, 40)}: give auto, or 1 to {MOST_PROCESSES}")
    return int(text)


def _own_python() -> str:
    import shutil
    import sys

    return shutil.which(sys.executable) or sys.executable


def _setting(arguments: argparse.Namespace, config: Config, key: str, default: object) -> object:
    given = getattr(arguments, key)
    return config.run.get(key, default) if given is None else given


def _resolve(spec: EngineSpec, asked: str) -> ModelRef | str:
    """Our engines' models must exist; a third party's engine names its models as it likes."""
    model = spec.options.get("model") or asked
    if model == RANDOM or (not model and spec.options.get("weights") == RANDOM):
        return RANDOM  # in the shapes of a compiled library, which only its engine can ask
    model = model or default_model()
    try:
        return resolve(model)
    except ModelError:
        if spec.name in BUILT_IN:
            raise
        return model


def _model_text(ref: ModelRef | str) -> str:
    return ref if isinstance(ref, str) else (ref.path or ref.preset or ref.name)


def _tokenizer(refs: list[ModelRef | str]) -> Tokenizer | Unavailable:
    """Of the first model; the others get the same ids."""
    for ref in refs:
        if not isinstance(ref, str):
            return load_tokenizer(ref)
    return Unavailable("no model with a tokenizer")


def _workload(
    arguments: argparse.Namespace,
    config: Config,
    refs: list[ModelRef | str],
    tokenizer: Tokenizer | Unavailable,
) -> Workload:
    vocabularies = [r.vocab_size for r in refs if not isinstance(r, str) and r.vocab_size]
    vocab = min(vocabularies, default=SMALL_VOCABULARY)
    seed = int(_setting(arguments, config, "seed", 0))  # type: ignore[call-overload]
    batch = int(_setting(arguments, config, "batch", 1))  # type: ignore[call-overload]
    text: str | None = None
    if arguments.prompt_ids is not None:
        row = read_ids(Path(arguments.prompt_ids))
        if max(row) >= vocab:
            raise UsageError(
                f"--prompt-ids {arguments.prompt_ids}: id {max(row)} is outside the vocabulary"
                f" of {vocab}"
            )
        rows: tuple[tuple[int, ...], ...] = (row,) * batch
    elif arguments.prompt is not None or (
        arguments.prompt_len is None
        and "prompt_len" not in config.run
        and not isinstance(tokenizer, Unavailable)
    ):
        text = DEFAULT_PROMPT if arguments.prompt is None else arguments.prompt
        if isinstance(tokenizer, Unavailable):
            raise UsageError(
                f"--prompt needs a tokenizer: {tokenizer.reason}; or give --prompt-ids"
            )
        ids = tuple(tokenizer.encode(text))
        if not ids:
            raise UsageError("--prompt is empty: it must make at least one token")
        rows = (ids,) * batch
    else:
        length = int(_setting(arguments, config, "prompt_len", 128))  # type: ignore[call-overload]
        if vocab <= PROMPT_ID_FLOOR:
            raise UsageError(f"the model's vocabulary of {vocab} is too small for seeded ids")
        rows = seeded_ids(length, vocab, batch, seed)
    return Workload(
        prompt_ids=rows,
        decode_len=int(_setting(arguments, config, "decode_len", 64)),  # type: ignore[call-overload]
        rounds=_goal(arguments, config).rounds,
        traced_steps=int(_setting(arguments, config, "traced_steps", 32)),  # type: ignore[call-overload]
        seed=seed,
        prompt_text=text,
    )


def _check_context(workload: Workload, specs: list[EngineSpec], refs: list[ModelRef | str]) -> None:
    for spec, ref in zip(specs, refs, strict=True):
        limit = None if isinstance(ref, str) else ref.context_limit
        if limit and workload.max_positions > limit:
            raise UsageError(
                f"{spec.name}: prompt {workload.prompt_len} + decode {workload.decode_len} + 1 ="
                f" {workload.max_positions} positions, but the model's context is {limit};"
                " shorten --prompt-len or --decode-len"
            )


def _output(given: str | None) -> Path:
    """Where the run goes; an empty path where ``name_run`` finds a name."""
    if given is None:
        return Path()
    path = Path(given)
    if path.suffix != ".sqlite":
        raise UsageError(f"-o {given}: name it *.sqlite, nsys stats refuses other names")
    return path


@contextmanager
def named_run(prepared: Prepared) -> Iterator[Prepared]:
    """With a run file of its own in the data folder, where the user has named none.

    The file is created here, so that of several runs in one second each has one; it is removed at
    the end if nothing was written to it.

    Raises:
        LlmprofError: the data folder cannot be written.
    """
    plan = prepared.plan
    if plan.output != Path():
        yield prepared
        return
    import platformdirs

    folder = Path(platformdirs.user_data_dir("llmprof")) / "runs"
    name = time.strftime("%Y-%m-%dT%H-%M-%S") + "-" + "-".join(e.name for e in plan.engines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = first_free(folder, name[:80], ".sqlite")
    except OSError as why:
        raise LlmprofError(f"cannot keep the run in {folder}: {why.strerror}; use -o") from None
    try:
        yield replace(prepared, plan=replace(plan, output=path))
    finally:
        with suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
