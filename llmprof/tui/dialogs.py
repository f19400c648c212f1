"""Help, and the question before a live run is ended."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from llmprof.tui.glyphs import Glyphs
from llmprof.tui.palette import style

Answer = TypeVar("Answer")

_KEYS = (
    ("t, 1 to 7", "next page; steps, summary, trace, kernels, text, log, host"),
    ("tab, left, right", "engine in focus; on the trace page left, right: step"),
    ("n N", "trace: steps from the slowest down, and back"),
    ("[ ]  + -", "trace: item before, next; zoom in, out around it"),
    ("enter", "the engine in focus alone, and back"),
    ("y, o, g", "y scale of steps; order of kernels; range of host"),
    ("up, down, pgup, pgdn", "scroll"),
    ("space", "freeze the display; the run goes on"),
    ("s", "screenshot (SVG) into the current folder"),
    ("q, ctrl+c", "quit; a live run is asked about"),
)
_WORDS = (
    ("TTFT", "start of prefill to the first token"),
    ("ITL", "one decode step, token to token"),
    ("prefill t/s", "prompt tokens / prefill time"),
    ("modelled", "bytes read a step / median step time"),
    ("of peak", "modelled / peak memory bandwidth"),
    ("traced", "median step traced / untraced"),
    ("– and n/a", "not measured yet; cannot be had (see summary)"),
)


def _help(glyphs: Glyphs) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    for title, rows in (("Keys", _KEYS), ("\nWords", _WORDS)):
        text.append(f"{title}\n", style("strong"))
        for name, meaning in rows:
            text.append(f"{glyphs.text(name):<22}", style("accent0"))
            text.append(f"{glyphs.text(meaning)}\n")
    text.right_crop(1)
    return text


class _Dialog(ModalScreen[Answer]):
    """A box over the page."""

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__(classes="-ascii" if glyphs.ascii else "")
        self._glyphs = glyphs


class HelpScreen(_Dialog[None]):
    """Keys and words. Any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter,space", "dismiss(None)", show=False)
    ]

    def compose(self) -> ComposeResult:
        yield Static(_help(self._glyphs), classes="dialog")


class ConfirmStop(_Dialog[bool]):
    """Asks whether a live run should end. True: stop it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter,q,ctrl+c", "dismiss(True)", show=False, priority=True),
        Binding("n,escape", "dismiss(False)", show=False, priority=True),
    ]

    def compose(self) -> ComposeResult:
        yield Static(
            Text.assemble(
                ("Stop the run?\n\n", style("strong")),
                "Finished rounds are kept in the run file.\n\n",
                ("y", style("accent0 strong")),
                " stop and quit      ",
                ("n", style("accent0 strong")),
                " go on",
            ),
            classes="dialog",
        )
