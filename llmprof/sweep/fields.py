"""The fields that a sweep can vary, and how lists of their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from llmprof.errors import UsageError
from llmprof.goal import seconds_of, share_of
from llmprof.plaintext import one_line

MOST_VALUES = 10_000


@dataclass(frozen=True)
class Field:
    """One field of a workload or of how it is measured; ``option`` is the run's own option."""

    name: str
    option: str
    kind: Literal["count", "number", "text"]
    """``count``: an integer ≥ 1, ``number``: an integer ≥ 0; both may end in ``k`` (1024)."""
    summary: str
    shape: bool = False
    """Can it differ between points that share a load?"""


_FIELDS = (
    Field("model", "--model", "text", "a model, as --model of a run takes it"),
    Field("context", "--prompt-len", "count", "KV positions before decoding (seeded ids)", True),
    Field("batch", "--batch", "count", "sequences at once", True),
    Field("decode-len", "--decode-len", "count", "decode steps a round", True),
    Field("rounds", "--rounds", "count", "timing rounds an engine", True),
    Field("precision", "--precision", "text", "half the interval's width that ends a point", True),
    Field("max-time", "--max-time", "text", "of a point: loading is not counted", True),
    Field("processes", "--processes", "text", "fresh processes; more than 1 share no load"),
    Field("traced-steps", "--traced-steps", "number", "steps of the traced pass", True),
    Field("trace", "--trace", "text", "what the traced pass records"),
    Field("bandwidth", "--bandwidth", "text", "DRAM counters: kernels, steps, off", True),
    Field("host-rate", "--host-rate", "number", "host stacks a second", True),
    Field("seed", "--seed", "number", "prompt ids, order, weights"),
)
FIELDS = {field.name: field for field in _FIELDS}
ALIASES = {"prompt-len": "context", "prompt_len": "context"}
_CHECKED: dict[str, tuple[Callable[[str], object | None], str]] = {
    "precision": (share_of, "1% or 0.5%"),
    "max-time": (seconds_of, "60s or 5m"),
}
_NUMBER = re.compile(r"(\d{1,9})(k?)", re.IGNORECASE)


def is_option(name: str) -> bool:
    """Is it ``ENGINE.OPTION``, an option of one engine (or of all: ``*.OPTION``)?"""
    return re.fullmatch(r"[A-Za-z0-9_*-]+\.[A-Za-z_][A-Za-z0-9_]*", name) is not None


def canonical(name: str, engines: tuple[str, ...] = ()) -> str:
    """The field's own name.

    Args:
        engines: names of the engines of the sweep, for ``ENGINE.OPTION``.

    Raises:
        UsageError: no such field; the nearest one is suggested.
    """
    wanted = ALIASES.get(name, name.replace("_", "-"))
    if wanted in FIELDS:
        return wanted
    if is_option(name):
        engine = name.partition(".")[0]
        if not engines or engine == "*" or engine in engines:
            return name
        near = get_close_matches(engine, engines, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"engines: {', '.join(engines)}"
        raise UsageError(f"field {one_line(name, 60)}: the sweep has no engine {engine!r}; {hint}")
    near = get_close_matches(wanted, [*FIELDS, "engine", "repeat"], 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"fields: {', '.join(FIELDS)}, ENGINE.OPTION"
    raise UsageError(f"unknown field {one_line(name, 60)!r}; {hint}")


def values_of(name: str, given: object) -> tuple[str, ...]:
    """The values of one field, in their order, each once: ``128,1k`` or a list of such.

    Args:
        name: canonical.
        given: text, a number, or a list of them (a TOML value).

    Raises:
        UsageError: no value, or one that the field does not take.
    """
    entries = given if isinstance(given, list) else [given]
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, bool):
            texts = ["1" if entry else "0"]
        elif isinstance(entry, int):
            texts = [str(entry)]
        elif isinstance(entry, str):
            texts = [entry] if name == "model" else entry.split(",")
        else:
            raise UsageError(f"field {name}: {one_line(str(entry), 60)!r} is no value")
        found += [_value(name, text.strip()) for text in texts]
    if not found:
        raise UsageError(f"field {name}: an empty list makes an empty grid")
    if len(found) > MOST_VALUES:
        raise UsageError(f"field {name}: {len(found):,} values, at most {MOST_VALUES:,}")
    return tuple(dict.fromkeys(found))


def _value(name: str, text: str) -> str:
    if not text:
        raise UsageError(f"field {name}: an empty value")
    field = FIELDS.get(name)
    if name in _CHECKED:
        check, shown = _CHECKED[name]
        if check(text) is None:
            raise UsageError(f"field {name}: {one_line(text, 40)!r} is not such as {shown}")
    if field is None or field.kind == "text":
        return text
    match = _NUMBER.fullmatch(text)
    least = 1 if field.kind == "count" else 0
    number = int(match[1]) * (1024 if match[2] else 1) if match else -1
    if number < least:
        raise UsageError(
            f"field {name}: {one_line(text, 40)!r} is not an integer ≥ {least} (128, 1k, 8k)"
        )
    return str(number)


def short(name: str, value: str) -> str:
    """``8192`` → ``8k`` where nothing is lost; of a model's path what tells it apart."""
    field = FIELDS.get(name)
    if name == "model":
        path = Path(value)
        return path.parent.name or path.name if path.name == "config.json" else path.name
    if field is not None and field.kind != "text" and value.isdecimal():
        number = int(value)
        if number >= 1024 and number % 1024 == 0:
            return f"{number // 1024}k"
    return value
