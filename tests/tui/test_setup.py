"""The setup screen: what it shows, how a choice is made, checked and remembered."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from textual.widgets import Input

from llmprof.cli.parser import parse
from llmprof.cli.run import setup_command
from llmprof.models.discover import found_models
from llmprof.tui.drawing.canvas import Canvas, strip
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.setup.screen import (
    Choice,
    Facts,
    Offer,
    SetupApp,
    State,
    edit,
    page,
    rows_of,
    toggle,
)

FACTS = Facts(
    engines=(
        Offer("torch", "torch 2.13.0, safetensors 0.8.0 in Python 3.12.3"),
        Offer("llamacpp", "cyllama 0.2.18"),
        Offer("mine", "no interpreter", "missing", "set python = … under [engines.mine]"),
        Offer("[red]x[/]\x1b[2J", "hostile \x1b]0;x\x07", "degraded", "fix \x9b it"),
    ),
    models=(Offer("smollm2", "real weights"), Offer("tiny", "this shape, random weights")),
    machine=(
        Offer("gpu", "NVIDIA H100 80GB HBM3"),
        Offer("py-spy", "not on PATH", "missing", "pip install py-spy"),
    ),
)
DEFAULTS = {"prompt_len": "text", "decode_len": "64", "rounds": "16"}


def app(check=lambda choice: "", remembered: Choice | None = None) -> SetupApp:
    return SetupApp(lambda: FACTS, check, remembered or Choice(), DEFAULTS)


async def ready(pilot) -> None:
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def shown(found: SetupApp) -> str:
    return "\n".join(text_of(r) for canvas in found.setup.query(Canvas) for r in canvas.rows)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_picture(size, snap_compare) -> None:
    assert snap_compare(app(), terminal_size=size, run_before=ready)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize("width", [60, 78, 118])
def test_rows_fit_and_show_hostile_text_literally(glyphs, width) -> None:
    state = State(FACTS, Choice(("torch",), "/models/[b]own[/b]", {"rounds": "3"}))
    rows = page(state, DEFAULTS, glyphs, width)
    assert max(width_of(r) for r in rows) <= width
    text = "\n".join(strip(r, glyphs).text for r in rows)
    assert "\x1b" not in text and "\x9b" not in text and "[red]x[/]" in text
    assert not glyphs.ascii or text.isascii()


def test_what_is_missing_comes_first_and_engines_say_how_to_get_them() -> None:
    rows = [text_of(r) for r in page(State(FACTS, Choice()), DEFAULTS, UNICODE, 118)]
    machine = rows[next(i for i, r in enumerate(rows) if "this machine" in r) + 1 :]
    assert "py-spy" in machine[0] and "gpu" in machine[1]
    assert any("missing: set python" in r for r in rows)


def test_space_takes_and_leaves_and_digits_edit() -> None:
    state = toggle(State(FACTS, Choice(("torch",))))
    assert state.choice.engines == ()
    where = rows_of(FACTS, state.choice)
    at = State(FACTS, state.choice, where.index(("model", "tiny")))
    assert toggle(at).choice.model == "tiny"
    at = State(FACTS, state.choice, where.index(("field", "rounds")))
    for key in ("0", "1", "2", "x", "backspace", "5"):
        at = edit(at, key)
    assert at.choice.fields["rounds"] == "15"
    at = State(FACTS, state.choice, where.index(("field", "trace")))
    assert edit(at, "right").choice.fields["trace"] == "full"


async def test_enter_starts_what_was_chosen() -> None:
    found = app()
    async with found.run_test(size=(100, 40)) as pilot:
        await ready(pilot)
        assert "enter decodes with torch, llamacpp" in shown(found)
        await pilot.press("j", "space", "down", "down", "down", "down", "space", "enter")
        await ready(pilot)
    assert found.return_value == Choice(("torch",), "tiny", {})


async def test_a_wrong_choice_is_said_and_can_be_mended() -> None:
    def check(choice: Choice) -> str:
        return "" if choice.model == "/m" else f"model {choice.model!r}: no such file"

    found = app(check)
    async with found.run_test(size=(100, 40)) as pilot:
        await ready(pilot)
        await pilot.press("enter")
        await ready(pilot)
        assert "model 'smollm2': no such file" in shown(found)
        for _ in range(6):
            await pilot.press("down")
        await pilot.press("space")
        await pilot.pause()
        pilot.app.screen.query_one(Input).value = "/m"
        await pilot.press("enter")
        await pilot.pause()
        await pilot.press("enter")
        await ready(pilot)
    assert found.return_value.model == "/m"


async def test_nothing_chosen_does_not_start_and_q_leaves() -> None:
    found = app(lambda choice: "never", Choice(("torch",)))
    async with found.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("space", "enter")
        assert "take at least one engine" in shown(found)
        await pilot.press("q")
    assert found.return_value is None


def arguments(*argv: str) -> argparse.Namespace:
    return parse(list(argv))


def test_the_last_choice_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert setup_command.recall() == Choice()
    choice = Choice(("torch", "llamacpp"), "tiny", {"rounds": "3"})
    setup_command.remember(choice)
    assert setup_command.recall() == choice
    (tmp_path / "llmprof" / "setup.json").write_text(json.dumps({"engines": 1, "fields": [2]}))
    assert setup_command.recall() == Choice()
    (tmp_path / "llmprof" / "setup.json").write_text("{")
    assert setup_command.recall() == Choice()


def test_a_choice_is_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments("--model", "tiny", "--rounds", "5")
    merged = setup_command._merged(Choice(("torch",), "smollm2", {"batch": "2"}), given)
    assert merged == Choice(("torch",), "tiny", {"batch": "2", "rounds": "5"})
    typed = setup_command._applied(given, merged)
    assert (typed.engine, typed.model, typed.rounds, typed.batch) == (["torch"], "tiny", 5, 2)
    assert typed.argv[-6:] == ["--engine", "torch", "--batch", "2", "--rounds", "5"]


def test_the_machine_is_looked_at() -> None:
    facts = setup_command.look()
    assert {"torch", "llamacpp"} <= {offer.name for offer in facts.engines}
    assert "tiny" in [offer.name for offer in facts.models]
    assert any(offer.name.lower() == "gpu" for offer in facts.machine)


def test_models_on_this_machine_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    cached = tmp_path / "hf" / "hub" / "models--a--b" / "snapshots" / "1"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    assert "own.gguf" in dict(found_models())
    assert str(cached) not in dict(found_models())
    (cached / "model.safetensors").write_bytes(b"")
    assert dict(found_models())[str(cached)] == "a/b, from the hub's cache"
