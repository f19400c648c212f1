"""An app of one screen that asks for one thing and ends."""

from __future__ import annotations

import os
from typing import ClassVar

from textual.app import ReturnType
from textual.binding import Binding, BindingType

from llmprof.tui.drawing import palette
from llmprof.tui.drawing.compositor import CellApp


class OneScreenApp(CellApp[ReturnType]):
    """Returns what the screen exits with, ``None`` when left."""

    CSS_PATH = "../llmprof.tcss"
    TITLE = "llmprof"
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True, system=True),
    ]

    def __init__(self) -> None:
        depth = palette.choose(os.environ)
        palette.use(depth)
        super().__init__(ansi_color=depth != "full")

    def action_leave(self) -> None:
        self.exit(None)
