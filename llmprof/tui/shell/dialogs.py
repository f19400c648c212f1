"""Boxes over the page: help, questions, one line of input, the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.palette import style

Answer = TypeVar("Answer")

_GENERAL: Final = (
    (("page",), "next page; 1 to 9 go to one"),
    (("findings",), "findings: what matters"),
    (("engine",), "engine in focus"),
    (("pause",), "freeze the display; the run goes on"),
    (("steps-pick",), "which NVTX ranges are steps (files of Nsight Systems)"),
    (("export", "screenshot", "copy"), "export; screenshot; copy (OSC 52)"),
    (("palette",), "command palette: actions, kernels, steps"),
    (("sources",), "where are these numbers from?"),
    (("quit",), "quit; a live run is asked about"),
)
_PAGES: Final[Mapping[str, Sequence[tuple[tuple[str, ...], str]]]] = {
    "steps": (
        (("zoom", "out"), "the engine in focus alone, and back"),
        (("scale",), "y scale: automatic, shared, own"),
    ),
    "timeline": (
        (("left", "right", "left-far", "right-far"), "pan (arrows too)"),
        (("zoom-in", "zoom-out", "whole"), "zoom in, out; all (wheel: zoom)"),
        (("slowest", "slowest-back", "median"), "slowest step, the next; median step"),
        (("goto", "zoom", "out"), "go to a step; fill the view; level up"),
        (("widest-gap", "widest-gap-back"), "widest gap of the step, the next"),
        (("item-back", "item-next"), "previous, next kernel or gap"),
        (("search", "match-next", "match-back"), "search kernels; next, before"),
        (("align", "round", "streams"), "by step or time; round (on steps too); streams"),
    ),
    "findings": (
        (("down", "up"), "next finding, the one before"),
        (("zoom",), "its evidence: step, gap or kernel on the timeline"),
        (("copy",), "copy the page"),
    ),
    "compare": (
        (("sort", "search", "purpose"), "order; filter; by purpose (qkv, o, …)"),
        (("basis",), "timing pass, as traced, or the selected step"),
        (("engine", "baseline"), "engine compared; it becomes the baseline"),
    ),
    "sweep": (
        (("point",), "the run of the point under the cursor"),
        (("curve-up", "curve-down", "left", "right"), "curve and place (arrows too)"),
        (("tab",), "curves, categories, map, fits (1 to 4 too)"),
        (("axis", "metric"), "another axis; another metric"),
    ),
    "memory": (
        (("sort",), "order: share; distance from the ceiling; µs a step to be won"),
        (("engine",), "engine on show, where there is no room for all"),
    ),
    "host": (
        (("goto",), "stacks of all steps, of one step, of the GPU's idle gaps"),
        (("left", "right"), "of one step: the previous, next step"),
        (("zoom", "out"), "the engine in focus alone, and back"),
    ),
}
_WORDS: Final = (
    ("TTFT", "start of prefill to the first token"),
    ("ITL", "one decode step, token to token"),
    ("modelled", "bytes read a step / median step time"),
    ("traced", "median step traced / untraced"),
    ("– and n/a", "not measured yet; cannot be had (see summary)"),
)
_SHOWN: Final = {
    "question_mark": "?", "plus": "+", "minus": "-", "equals_sign": "=", "slash": "/",
    "full_stop": ".", "comma": ",", "right_square_bracket": "]", "left_square_bracket": "[",
    "colon": ":", "escape": "esc",
}  # fmt: skip


def key_text(keys: str) -> str:
    """``+`` of ``plus,equals_sign``: the shortest of a binding's keys as it is written on it."""
    names = [_SHOWN.get(key, key) for key in keys.split(",")]
    return next((n for n in names if len(n) == 1), names[0])


class Once:
    """For a screen that is left once: keys that come fast can ask for it twice, and Textual would
    then pop the page below, or fail where there is none."""

    _left = False

    def dismiss(self, result: Any = None) -> AwaitComplete:
        if self._left:
            return AwaitComplete()
        self._left = True
        done: AwaitComplete = super().dismiss(result)  # type: ignore[misc]
        return done


class Dialog(Once, ModalScreen[Answer]):
    """A box over the page."""

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__(classes="-ascii" if glyphs.ascii else "")
        self._glyphs = glyphs


class HelpScreen(Dialog[None]):
    """Keys of the page on show, and words. Any of the usual keys closes it.

    Args:
        keys: binding id → keys as they are now, the user's remapping included.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter,space", "dismiss(None)", show=False)
    ]

    def __init__(self, glyphs: Glyphs, page: str, keys: Mapping[str, str]) -> None:
        super().__init__(glyphs)
        self._page = page
        self._keys = keys

    def compose(self) -> ComposeResult:
        yield Static(self._text(), classes="dialog")

    def _names(self, ids: Sequence[str]) -> str:
        keys = " ".join(key_text(self._keys[i]) for i in ids if i in self._keys)
        return self._glyphs.text(keys)

    def _text(self) -> Text:
        text = Text(no_wrap=True, overflow="crop")
        own = _PAGES.get(self._page, ())
        sections = [
            (title, [(names, said) for ids, said in rows if (names := self._names(ids))])
            for title, rows in ((f"Keys of {self._page}", own),
                                ("Everywhere" if own else "Keys", _GENERAL))
            if rows
        ]  # fmt: skip
        if self._page not in ("timeline", "sweep"):
            sections.append(("Words", [(self._glyphs.text(name), said) for name, said in _WORDS]))
        wide = 2 + max(len(left) for _, rows in sections for left, _ in rows)
        for title, rows in sections:
            text.append(f"{title}\n", style("strong"))
            for left, meaning in rows:
                text.append(left.ljust(wide), style("accent0"))
                text.append(f"{self._glyphs.text(meaning)}\n")
        text.right_crop(1)
        return text


class ConfirmStop(Dialog[bool]):
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


class Ask(Dialog[str | None]):
    """One line of input; ``None`` when left with escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False, priority=True)
    ]

    def __init__(
        self, glyphs: Glyphs, question: str, value: str = "", *, digits: bool = False
    ) -> None:
        super().__init__(glyphs)
        self._question = question
        self._value = value
        self._digits = digits

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -ask"):
            yield Static(Text(self._glyphs.text(self._question), style("strong")))
            yield Input(
                self._value, compact=True, restrict=r"\d*" if self._digits else None, id="answer"
            )

    def on_mount(self) -> None:
        entry = self.query_one(Input)
        entry.cursor_blink = False  # each turn would be sent
        entry.focus()

    def on_key(self, event: Key) -> None:
        """Typed before the line had the focus: on a busy machine some letters are."""
        entry = self.query_one(Input)
        if entry.has_focus:
            return
        if event.key == "enter":
            self.dismiss(entry.value)
        elif (
            event.is_printable
            and event.character
            and not (self._digits and not event.character.isdecimal())
        ):
            entry.insert_text_at_cursor(event.character)
        event.stop()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class Choose(Dialog[tuple[str, str] | None]):
    """One of several, and a line that goes with it; (name, line).

    Args:
        entries: name → (what it is, the line that it comes with), in order.
        verb: what enter does.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down,tab", "move(1)", show=False, priority=True),
    ]

    def __init__(
        self, glyphs: Glyphs, title: str, entries: Mapping[str, tuple[str, str]], verb: str
    ) -> None:
        super().__init__(glyphs)
        self._title = title
        self._verb = verb
        self._entries = list(entries.items())
        self._width = max(12, *(len(name) + 2 for name in entries))
        self._index = 0

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -ask"):
            yield Static(Text(self._glyphs.text(self._title), style("strong")))
            yield Static(self._list(), id="entries")
            yield Input(self._path(), compact=True, id="answer")
            note = f"up, down: choose    enter: {self._verb}    esc: leave"
            yield Static(Text(note, style("dim")))

    def on_mount(self) -> None:
        entry = self.query_one(Input)
        entry.cursor_blink = False  # each turn would be sent
        entry.focus()

    def _path(self) -> str:
        return self._entries[self._index][1][1]

    def _list(self) -> Text:
        text = Text(no_wrap=True, overflow="crop")
        for i, (name, (meaning, _)) in enumerate(self._entries):
            on = i == self._index
            label = f"{self._glyphs.text(name):<{self._width}}"
            text.append(f"{self._glyphs.focus if on else ' '} {label}",
                        style("accent0 strong" if on else ""))  # fmt: skip
            text.append(f"{self._glyphs.text(meaning)}\n", style("" if on else "dim"))
        text.right_crop(1)
        return text

    def action_move(self, way: int) -> None:
        entry = self.query_one(Input)
        own = entry.value != self._path()
        self._index = (self._index + way) % len(self._entries)
        self.query_one("#entries", Static).update(self._list())
        if not own:
            entry.value = self._path()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss((self._entries[self._index][0], event.value.strip()))
