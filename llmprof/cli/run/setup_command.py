"""``llmprof`` in a terminal with no engine named: the setup screen, and the choice it remembers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llmprof.cli.run.planning import Prepared, prepare
from llmprof.errors import LlmprofError
from llmprof.newfiles import write_whole
from llmprof.tui.setup.screen import FIELDS, Choice, Facts, Offer, SetupApp
from llmprof.tui.shell.hangup import watch_terminal

_DEFAULTS = {
    "prompt_len": "text",
    "decode_len": "64",
    "batch": "1",
    "rounds": "by time",
    "traced_steps": "32",
    "trace": "kernels",
}
_EVERYWHERE = ("torch", "llamacpp")
"""Engines that run without a GPU: listed, and taken, first."""
_MACHINE = ("gpu", "cupti", "ptrace", "py-spy", "nsys", "data folder", "terminal")
"""Findings of the doctor that matter before a run."""


def set_up(arguments: argparse.Namespace) -> Prepared | None:
    """Ask what to run; ``None`` when the user leaves."""
    prepared: list[Prepared] = []

    def check(choice: Choice) -> str:
        try:
            prepared.append(prepare(_applied(arguments, choice)))
        except LlmprofError as why:
            return str(why)
        return ""

    watch_terminal()
    choice = SetupApp(look, check, _merged(recall(), arguments), _DEFAULTS).run()
    if choice is None or not prepared:
        return None
    remember(choice)
    return prepared[-1]


def look() -> Facts:
    """Engines, models and the machine, as the doctor finds them."""
    from llmprof.config import load_config
    from llmprof.doctor import checks as doctor
    from llmprof.engines.registry import engine_names
    from llmprof.models.discover import found_models

    config = load_config()
    names = [*engine_names(), *(n for n in config.pythons if n not in engine_names())]
    pythons = {name: config.pythons.get(name, sys.executable) for name in names}
    checks = doctor.examine(pythons)
    engines = [
        Offer(c.name.removeprefix("engine "), c.detail, c.status, c.fix)
        for c in checks
        if c.name.startswith("engine ")
    ]
    rank = {"ok": 0, "degraded": 1, "missing": 2}
    engines.sort(key=lambda offer: (rank[offer.status], offer.name not in _EVERYWHERE))
    machine = [
        Offer(c.name, c.detail, c.status, c.fix)
        for c in checks
        if c.name.lower().startswith(_MACHINE)
    ]
    models = tuple(Offer(name, detail) for name, detail in found_models())
    return Facts(tuple(engines), models, tuple(machine))


def _applied(arguments: argparse.Namespace, choice: Choice) -> argparse.Namespace:
    """The command line as if the choice had been typed."""
    typed = argparse.Namespace(**vars(arguments))
    typed.engine = list(choice.engines)
    typed.model = choice.model or None
    typed.argv = [*arguments.argv, *(part for e in choice.engines for part in ("--engine", e))]
    if choice.model and "--model" not in arguments.argv:
        typed.argv += ["--model", choice.model]
    for name, _, _ in FIELDS:
        text = choice.fields.get(name, "")
        if not text:
            continue
        if name == "prompt_len" and (arguments.prompt or arguments.prompt_ids):
            continue
        setattr(typed, name, text if name == "trace" else int(text))
        typed.argv += [f"--{name.replace('_', '-')}", text]
    for name in ("prompt_len", "decode_len", "batch", "rounds"):
        if getattr(typed, name) == 0:
            raise LlmprofError(f"{name.replace('_', ' ')} must be at least 1")
    return typed


def _merged(last: Choice, arguments: argparse.Namespace) -> Choice:
    """The last choice, under what the command line says."""
    given = {
        name: str(getattr(arguments, name))
        for name, _, _ in FIELDS
        if getattr(arguments, name) is not None
    }
    return Choice(last.engines, arguments.model or last.model, {**last.fields, **given})


def _file() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("llmprof")) / "setup.json"


def recall() -> Choice:
    """The last choice; the default one where there is none that can be read."""
    try:
        data: Any = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Choice()
    if not isinstance(data, dict):
        return Choice()
    engines, model, fields = data.get("engines"), data.get("model"), data.get("fields")
    known = {name for name, _, _ in FIELDS}
    return Choice(
        tuple(str(e) for e in engines) if isinstance(engines, list) else (),
        model if isinstance(model, str) else "",
        {k: v for k, v in fields.items() if k in known and isinstance(v, str)}
        if isinstance(fields, dict)
        else {},
    )


def remember(choice: Choice) -> None:
    """Keep the choice for the next time; a folder that cannot be written is no reason to stop."""
    file = _file()
    data = {"engines": list(choice.engines), "model": choice.model, "fields": dict(choice.fields)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(data, indent=1) + "\n")
    except OSError as why:
        print(f"llmprof: the choice is not remembered: {why}", file=sys.stderr)
