"""A grid of points: engines, axes, fixed fields, repeats; and what it is on the command line."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from llmprof.config import EngineSpec, load_config, parse_engine
from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.sweep.fields import FIELDS, canonical, short, values_of

MOST_POINTS = 100_000
_TABLES = ("engine", "repeat", "fields")


@dataclass(frozen=True)
class Point:
    """One run: its engines are interleaved in it."""

    point_id: str
    """Of its engines, fields and repeat: the same on every machine, whatever else the grid has."""
    engines: tuple[str, ...]
    """As ``--engine`` takes them, with the options of this point."""
    fields: Mapping[str, str]
    repeat: int

    @property
    def words(self) -> str:
        """``context 1k · batch 2`` of what a run names."""
        parts = [
            f"{name} {short(name, value)}"
            for name, value in self.fields.items()
            if name in ("model", "context", "batch", "decode-len")
        ]
        if self.repeat:
            parts.append(f"repeat {self.repeat + 1}")
        return one_line(" · ".join(parts), 120)

    def arguments(self) -> list[str]:
        """Of ``llmprof``, without the ones that say where the run goes."""
        found = [part for engine in self.engines for part in ("--engine", engine)]
        for name, value in self.fields.items():
            if name in FIELDS:
                found += [FIELDS[name].option, value]
        return found


@dataclass(frozen=True)
class Grid:
    """``axes`` are the fields with the lists; a field with one value is the same for all."""

    engines: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    repeat: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        """Fields with more than one value."""
        return tuple(name for name, values in self.fields.items() if len(values) > 1)

    @property
    def grid_id(self) -> str:
        """Equal for grids of the same points, in whatever order."""
        return _digest(sorted(point.point_id for point in self.points()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "engine": list(self.engines),
            "fields": {name: list(values) for name, values in self.fields.items()},
            "repeat": self.repeat,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Grid:
        """Raises ``UsageError`` for what is no grid."""
        if not isinstance(data.get("fields", {}), dict):
            raise UsageError("a sweep's fields must be a table")
        unknown = [key for key in data if key not in _TABLES]
        if unknown:
            # Every field may stand at the top of the file too.
            data = {
                **{k: data[k] for k in data if k in _TABLES},
                "fields": {**data.get("fields", {}), **{k: data[k] for k in unknown}},
            }
        engines = data.get("engine", [])
        engines = [engines] if isinstance(engines, str) else engines
        if not isinstance(engines, list) or not all(isinstance(e, str) for e in engines):
            raise UsageError("engine must be a list such as ['torch', 'llamacpp:drive=forward']")
        return make(engines, data.get("fields", {}), data.get("repeat", 1))

    def points(self) -> list[Point]:
        """All points, a whole repeat before the next one: slow drift does not fall on one value."""
        names = list(self.fields)
        count = self.repeat
        for values in self.fields.values():
            count *= len(values)
        if count > MOST_POINTS:
            raise UsageError(f"the grid has {count:,} points, at most {MOST_POINTS:,}")
        combined = [dict(zip(names, row, strict=True)) for row in product(*self.fields.values())]
        return [self._point(values, n) for n in range(self.repeat) for values in combined]

    def _point(self, values: dict[str, str], repeat: int) -> Point:
        engines = tuple(_with_options(text, values) for text in self.engines)
        content = {"engines": list(engines), "fields": values, "repeat": repeat}
        return Point(_digest(content), engines, values, repeat)

    def to_toml(self) -> str:
        """The file that ``llmprof sweep FILE`` reads."""
        lines = [f"engine = {_toml(self.engines)}", f"repeat = {self.repeat}", "", "[fields]"]
        for name, values in self.fields.items():
            # JSON's strings are TOML's basic strings.
            key = name if "." not in name and "*" not in name else json.dumps(name)
            kind = FIELDS[name].kind if name in FIELDS else "text"
            shown = _toml(values) if kind == "text" else f"[{', '.join(values)}]"
            lines.append(f"{key} = {shown}")
        return "\n".join(lines) + "\n"


def make(engines: list[str], fields: Mapping[str, object], repeat: object = 1) -> Grid:
    """A checked grid.

    Raises:
        UsageError: an unknown field, an empty list, an engine that no config knows how to start.
    """
    if not engines:
        raise UsageError("an empty grid: name at least one --engine")
    if isinstance(repeat, bool) or not isinstance(repeat, int) or not 1 <= repeat <= 1000:
        raise UsageError(f"repeat {one_line(str(repeat), 40)}: give 1 to 1000")
    config = load_config()
    names = tuple(_named(engine, config).name for engine in engines)
    found: dict[str, tuple[str, ...]] = {}
    for name, given in fields.items():
        known = canonical(name, names)
        if known in found:
            raise UsageError(f"field {known} is given twice")
        found[known] = values_of(known, given)
    return Grid(tuple(engines), found, repeat)


def read_toml(path: Path) -> Grid:
    """A grid file.

    Raises:
        UsageError: unreadable, no TOML, or no grid.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
        raise UsageError(f"grid file {one_line(str(path))}: {one_line(str(why), 200)}") from None
    try:
        return Grid.from_dict(data)
    except UsageError as why:
        raise UsageError(f"grid file {one_line(str(path))}: {why}") from None


def spec_of(engine: str) -> EngineSpec:
    """An engine of a point, with what the config files say under it."""
    return _named(engine, load_config())


def _named(engine: str, config: Any) -> EngineSpec:
    return parse_engine(engine, config)


def _with_options(engine: str, values: Mapping[str, str]) -> str:
    """``torch:dtype=fp16`` where the point's field ``torch.dtype`` says so."""
    head, colon, options = engine.partition(":")
    name = head.partition("@")[0]
    given = [pair for pair in options.split(",") if pair] if colon else []
    for key, value in values.items():
        owner, dot, option = key.partition(".")
        if dot and owner in (name, "*"):
            given = [pair for pair in given if pair.partition("=")[0] != option]
            given.append(f"{option}={value}")
    return f"{head}:{','.join(given)}" if given else head


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _toml(values: tuple[str, ...]) -> str:
    return "[" + ", ".join(json.dumps(value) for value in values) + "]"
