"""What a sampled frame is, and what a stack says about the host. Text in it is untrusted."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, cast, get_args

from llmprof.plaintext import one_line
from llmprof.records import HostFrame

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = Literal["launch", "sync", "graph update", "allocator", "wait", "gil", "native", "host"]
"""What the host was doing. ``launch``: on its way from one launch to the next, inside the framework
or the driver. ``sync``: waiting for the device or for a copy. ``wait``: asleep, or waiting for a
lock or a file. ``gil``: waiting for Python's lock. ``native``: inside the one native call that the
engine's loop is, not resolved (``stacks.one_call``). ``host``: computing something else."""
Origin = Literal["engine", "library", "python", "native", "llmprof"]
"""Whose code a frame is. ``engine``: an adapter, a plugin, any package but the large libraries."""
ORIGINS: tuple[Origin, ...] = get_args(Origin)

DEPTH = 4
"""Python frames looked at, from the innermost outwards."""
_LIBRARIES = re.compile(r"/(?:site|dist)-packages/(?:torch|numpy|triton|nvtx|functorch|tvm)/")
_STDLIB = re.compile(r"/lib/python3\.\d+/(?!(?:site|dist)-packages/)|^<frozen")
_NATIVE = re.compile(r"\.so(?:\.|$)|^\[|^$")
_ROUND_LOOP = ("ranged_round", "timed_round")


@dataclass(frozen=True)
class Rule:
    kind: Kind
    function: re.Pattern[str] | None
    file: re.Pattern[str] | None
    source: re.Pattern[str] | None

    def matches(self, frame: HostFrame, innermost: bool) -> bool:
        if self.source is not None and not (innermost and self.source.search(frame.source)):
            return False
        if self.file is not None and not self.file.search(frame.file):
            return False
        return self.function is None or bool(self.function.search(frame.function))


@lru_cache(maxsize=1)
def shipped_rules() -> tuple[Rule, ...]:
    text = resources.files("llmprof.analysis.host").joinpath("host_rules.toml").read_text("utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)["rule"]

    def pattern(row: Mapping[str, Any], key: str) -> re.Pattern[str] | None:
        return re.compile(row[key]) if key in row else None

    return tuple(
        Rule(cast("Kind", r["kind"]), *(pattern(r, k) for k in ("function", "file", "source")))
        for r in rows
    )


def kind_of(stack: Sequence[HostFrame], rules: Sequence[Rule] | None = None) -> Kind:
    """The kind of a stack, innermost frame first; ``host`` where no rule knows better.

    Native frames do not count for the depth: 10 to 30 of them lie between a library's kernel and
    the Python line that called it.
    """
    python_seen = 0
    for frame in stack:
        innermost = False
        if origin(frame) != "native":
            python_seen += 1
            innermost = python_seen == 1
            if python_seen > DEPTH:
                break
        for rule in shipped_rules() if rules is None else rules:
            if rule.matches(frame, innermost):
                return rule.kind
    return "host"


def origin(frame: HostFrame) -> Origin:
    """Whose code it is, by its file."""
    file = frame.file
    if _NATIVE.search(file):
        return "native"
    if "/llmprof/worker/" in file or "/llmprof/tracers/" in file:
        return "llmprof"
    if _STDLIB.search(file):
        return "python"
    if _LIBRARIES.search(file):
        return "library"
    return "engine" if file.endswith(".py") or file.startswith("<") else "native"


def below_loop(stack: Sequence[HostFrame]) -> tuple[HostFrame, ...]:
    """The stack without llmprof's own loop at its outer end: what ``decode_step`` called."""
    for at, frame in enumerate(stack):
        if frame.function in _ROUND_LOOP and origin(frame) == "llmprof":
            return tuple(stack[:at]) or tuple(stack[: at + 1])
    return tuple(stack)


def label(frame: HostFrame, with_line: bool = True) -> str:
    """``function (file:line)`` on one printable line, the file without its folders."""
    file = frame.file.rpartition("/")[2] or "?"
    place = f"{file}:{frame.line}" if with_line and frame.line else file
    return one_line(f"{frame.function} ({place})", 120)
