"""Engine specs from the command line, and the config files. Standard library only.

Later files win: ``/etc/llmprof/config.toml``, the user's config folder, ``./llmprof.toml``.

    [engines.mlc]
    python = "/opt/engines/mlc/bin/python"
    options = { drive = "serve" }

    [run]
    rounds = 12

    [keys]
    slowest = "f8"

Where ``LLMPROF_LOCKED`` is set only the first of these files is read and ``--engine NAME@PYTHON``
is refused: the user of a forced command decides what is measured, not which programs run.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from llmprof.errors import UsageError
from llmprof.plaintext import one_line

LOCK_VARIABLE = "LLMPROF_LOCKED"
SYSTEM_FILE = Path("/etc/llmprof/config.toml")

RUN_KEYS = {
    "engine": list,
    "model": str,
    "prompt_len": int,
    "decode_len": int,
    "batch": int,
    "rounds": int,
    "precision": str,
    "max_time": str,
    "processes": str,
    "traced_steps": int,
    "host_rate": int,
    "bandwidth": str,
    "trace": str,
    "seed": int,
}
"""``[run]`` keys: defaults of the command-line options of the same names."""

_SPEC = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:@(?P<python>[^:]+))?(?::(?P<options>.*))?")

_PAIRS = re.compile(r",(?=\s*[A-Za-z_][A-Za-z0-9_]*=)")
"""Commas between options: those before a key. Any other is part of a value, such as a path."""


@dataclass(frozen=True)
class EngineSpec:
    """One ``--engine NAME[@PYTHON][:key=value,…]``."""

    name: str
    python: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass
class Config:
    """What the config files say; empty without any."""

    pythons: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Keys of the TUI: name of the binding → keys, apart by commas."""
    files: list[Path] = field(default_factory=list)


_chosen: list[Path] = []


def choose_file(path: str | None) -> None:
    """Read this file alone from now on (``--config``); ``None``: those that are looked for.

    Raises:
        UsageError: no such file, or this account may not choose one.
    """
    _chosen.clear()
    if path is None:
        return
    if locked():
        raise UsageError(f"--config {one_line(path, 80)}: this account cannot choose a config file")
    if not Path(path).is_file():
        raise UsageError(f"--config {one_line(path)}: no such file")
    _chosen.append(Path(path))


def config_paths() -> list[Path]:
    """Where config files are looked for, weakest first; or the one that was chosen."""
    if _chosen:
        return list(_chosen)
    if locked():
        return [SYSTEM_FILE]
    import platformdirs

    user = Path(platformdirs.user_config_dir("llmprof")) / "config.toml"
    return [SYSTEM_FILE, user, Path("llmprof.toml")]


def locked() -> bool:
    """May the user choose measurements only, and no interpreter and no config file?"""
    return bool(os.environ.get(LOCK_VARIABLE))


def check_target(output: str | Path) -> None:
    """Results go below the home, and not into its hidden files, which other programs run.

    Raises:
        UsageError: an absolute path, ``..``, ``~`` or a hidden name.
    """
    if any(part.startswith((".", "~", "/")) for part in PurePosixPath(str(output)).parts):
        raise UsageError(
            f"{one_line(str(output), 80)}: this account writes below its home only, to names"
            " without a leading dot"
        )


def load_config(paths: list[Path] | None = None) -> Config:
    """Read and merge the config files that exist.

    Raises:
        UsageError: not TOML, or a key that llmprof does not know.
    """
    config = Config()
    for path in config_paths() if paths is None else paths:
        if path.is_file():
            _merge(config, path, _read_toml(path))
            config.files.append(path)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
        raise UsageError(f"config file {path}: {why}") from None


def _merge(config: Config, path: Path, data: dict[str, Any]) -> None:
    for section, content in data.items():
        if section not in ("engines", "run", "keys") or not isinstance(content, dict):
            raise UsageError(
                f"config file {path}: unknown entry {section!r}; known: engines, run, keys"
            )
    for name, entry in data.get("engines", {}).items():
        if not isinstance(entry, dict) or not set(entry) <= {"python", "options"}:
            raise UsageError(f"config file {path}: [engines.{name}] knows python and options only")
        if "python" in entry:
            config.pythons[name] = str(entry["python"])
        options = entry.get("options", {})
        if not isinstance(options, dict):
            raise UsageError(f"config file {path}: [engines.{name}] options must be a table")
        config.options.setdefault(name, {}).update({k: _text(v) for k, v in options.items()})
    for name, keys in data.get("keys", {}).items():
        if not isinstance(keys, str) or not keys:
            raise UsageError(
                f"config file {path}: [keys] {name} must be a text such as 'f5,ctrl+r'"
            )
        config.keys[name] = keys
    for key, value in data.get("run", {}).items():
        kind = RUN_KEYS.get(key)
        if kind is None or not isinstance(value, kind):
            raise UsageError(
                f"config file {path}: [run] {key} = {value!r}; known: {', '.join(RUN_KEYS)}"
            )
        config.run[key] = value


def _text(value: object) -> str:
    return ("1" if value else "0") if isinstance(value, bool) else str(value)


def parse_engine(text: str, config: Config) -> EngineSpec:
    """``NAME[@PYTHON][:key=value,…]`` with the config file's defaults under it.

    Raises:
        UsageError: malformed, or no such interpreter.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--engine {text}: expected NAME[@PYTHON][:key=value,…]")
    name = match["name"]
    options = dict(config.options.get(name, {}))
    for pair in _PAIRS.split(match["options"] or ""):
        pair = pair.strip(",")
        if not pair:
            continue
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--engine {text}: {pair!r} is not key=value")
        options[key.strip()] = value.strip()
    if match["python"] and locked():
        raise UsageError(f"--engine {text}: this account cannot choose the interpreter")
    wanted = match["python"] or config.pythons.get(name) or sys.executable
    found = shutil.which(str(Path(wanted).expanduser()))
    if found is None:
        raise UsageError(f"--engine {text}: no interpreter at {wanted}")
    return EngineSpec(name, found, options)


def labels(specs: list[EngineSpec]) -> list[str]:
    """A short, unique label for each engine: its ``label=`` option, its name, or name#2."""
    wanted = []
    for spec in specs:
        shown = [f"{k}={v}" for k, v in spec.options.items() if k not in ("label", "model")]
        alone = sum(other.name == spec.name for other in specs) == 1
        full = f"{spec.name}:{','.join(shown)}" if shown and not alone else spec.name
        wanted.append(spec.options.get("label") or (full if len(full) <= 28 else spec.name))
    result: list[str] = []
    for label in wanted:
        unique, number = label, 1
        while unique in result:
            number += 1
            unique = f"{label}#{number}"
        result.append(unique)
    return result
