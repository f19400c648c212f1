"""The Textual app: polls a ``SnapshotSource`` and hands snapshots to the main screen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.frames.snapshot import SnapshotSource
from llmprof.errors import (
    EXIT_ENGINE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_RAN,
    EXIT_OK,
    LlmprofError,
)
from llmprof.newfiles import first_free
from llmprof.records.steps import (
    AUTO_STEPS,
    StepChoice,
)
from llmprof.tui.drawing import palette
from llmprof.tui.drawing.cells import clean
from llmprof.tui.drawing.compositor import CellApp
from llmprof.tui.drawing.glyphs import choose
from llmprof.tui.shell.commands import Palette, RunCommands
from llmprof.tui.shell.dialogs import Choose, ConfirmStop
from llmprof.tui.shell.exporting import choices, write
from llmprof.tui.shell.main_screen import MainScreen
from llmprof.tui.shell.refresh import refresh_rate
from llmprof.tui.shell.step_picker import Picked, RangesFound, find, reread


class Exported(Message):
    """An export has ended: where it is, or why there is none."""

    def __init__(self, text: str, failed: bool) -> None:
        super().__init__()
        self.text = text
        self.failed = failed


class LlmprofApp(CellApp[int]):
    """Shows a running session or replayed runs; ``run()`` returns the exit code.

    Args:
        source: where snapshots come from. Polled while ``source.live``, else read once.
        refresh_hz: polls a second; by default 4, over SSH 2.
        keymap: binding id → keys, in place of the default ones.
        steps: what the files were opened with, for exports.
    """

    CSS_PATH = "../llmprof.tcss"
    TITLE = "llmprof"
    COMMANDS = {RunCommands}  # noqa: RUF012 - as Textual has it
    COMMAND_PALETTE_BINDING = "ctrl+backslash"
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "quit_run", show=False, priority=True, system=True),
    ]

    def __init__(
        self,
        source: SnapshotSource,
        *,
        refresh_hz: float | None = None,
        keymap: Mapping[str, str] | None = None,
        steps: StepChoice = AUTO_STEPS,
    ) -> None:
        depth = palette.choose(os.environ)
        palette.use(depth)
        super().__init__(ansi_color=depth != "full")
        self.source = source
        self.refresh_hz = refresh_hz or refresh_rate(os.environ)
        self.main = MainScreen(source.snapshot(), choose(os.environ), source.live)
        self._keymap_given = dict(keymap or {})
        self._steps = steps

    def get_default_screen(self) -> Screen[None]:
        return self.main

    def keys(self) -> dict[str, str]:
        """Binding id → keys as they are now."""
        known = self.main.default_keys()
        return {name: self._keymap_given.get(name, keys) for name, keys in known.items()}

    def on_mount(self) -> None:
        known = self.main.default_keys()
        self.set_keymap({k: v for k, v in self._keymap_given.items() if k in known})
        if unknown := sorted(self._keymap_given.keys() - known.keys()):
            names = clean(", ".join(unknown))
            self.notify(f"[keys] knows no {names}; see docs/tui.md", severity="warning",
                        markup=False)  # fmt: skip
        if isinstance(self.source, RunDataSource) and self.source.needs_steps:
            self.action_pick_steps(asked=False)
        if self.source.live:
            self.set_interval(1 / self.refresh_hz, self.poll, name="poll")

    def poll(self) -> None:
        """Read the source once and show what it has."""
        snapshot = self.source.snapshot()
        self.main.show(snapshot)
        if snapshot.state != "running" and getattr(self.source, "leave", False):
            self.exit(self._exit_code())

    def action_command_palette(self) -> None:
        """Textual's, in ASCII where it must be."""
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(self.main.view.glyphs.ascii))

    def action_export(self) -> None:
        """Ask for a format and write it on a thread."""
        file = self.main.snapshot.file
        paths = getattr(self.source, "paths", None) or ([file] if file else [])
        if not paths:
            self.notify("nothing to export: the run was not saved", severity="error")
            return
        formats = choices(Path(str(paths[0])))
        dialog = Choose(self.main.view.glyphs, "Export to", formats, "write")

        def go(answer: tuple[str, str] | None) -> None:
            if answer is not None:
                self.notify(f"writing {clean(answer[1])}", markup=False)
                self._export([Path(str(p)) for p in paths], *answer)

        self.push_screen(dialog, go)

    @work(thread=True, group="export")
    def _export(self, paths: list[Path], to: str, out: str) -> None:
        try:
            text, failed = write(paths, to, out, self._steps), False
        except (LlmprofError, OSError) as why:
            text, failed = str(why), True
        self.post_message(Exported(text, failed))

    def on_exported(self, message: Exported) -> None:
        severity = "error" if message.failed else "information"
        self.notify(clean(message.text), severity=severity, markup=False)  # type: ignore[arg-type]

    def action_pick_steps(self, asked: bool = True) -> None:
        """Ask which NVTX ranges are the steps of an export of Nsight Systems.

        Args:
            asked: by the user, who is told where there is nothing to choose from.
        """
        if isinstance(self.source, RunDataSource) and self.source.picks_steps:
            self._find_ranges(self.source, asked)
        elif asked:
            text = "only a single file of Nsight Systems has ranges to choose steps from"
            self.notify(text, severity="warning")

    @work(thread=True, group="ranges", exclusive=True)
    def _find_ranges(self, source: RunDataSource, asked: bool) -> None:
        self.post_message(RangesFound(*find(source), asked))

    def on_ranges_found(self, message: RangesFound) -> None:
        if not message.entries:
            if message.asked or message.error:
                text = message.error or "the file has no NVTX ranges that come more than once"
                self.notify(clean(text), severity="warning", markup=False)
            return
        if not (message.asked or message.likely):
            return  # all of it can be seen without; the warning says how to choose
        title = "Which ranges are the steps? (* is any text, DOMAIN:TEXT)"
        dialog = Choose(self.main.view.glyphs, title, message.entries, "use")

        def go(answer: tuple[str, str] | None) -> None:
            if answer is not None and isinstance(self.source, RunDataSource):
                self._reread(self.source, answer[1])

        self.push_screen(dialog, go)

    @work(thread=True, group="ranges", exclusive=True)
    def _reread(self, source: RunDataSource, step_range: str) -> None:
        self.post_message(reread(source, step_range))

    def on_picked(self, message: Picked) -> None:
        if message.source is None:
            self.notify(clean(message.error), severity="error", markup=False)
            return
        self.source, self._steps = message.source, message.steps
        self.main.reopen(message.source.snapshot())

    def take_screenshot(self) -> None:
        """The screen as SVG into the current folder."""
        try:
            path = first_free(Path.cwd(), "llmprof", ".svg", numbered=True)
            try:
                self.save_screenshot(path.name, path=str(path.parent))
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        except OSError as why:
            self.notify(f"no screenshot: {clean(str(why))}", severity="error", markup=False)
        else:
            self.notify(f"saved {clean(str(path.absolute()))}", markup=False)

    def action_quit_run(self) -> None:
        """Quit; a running session is asked about and stopped first."""
        if not self.source.live or self.source.snapshot().state != "running":
            self.exit(self._exit_code())
        elif isinstance(self.screen, ConfirmStop):
            self.screen.dismiss(True)
        else:
            self.push_screen(ConfirmStop(self.main.view.glyphs), self._answered)

    def _answered(self, stop: bool | None) -> None:
        if not stop:
            return
        if self.source.snapshot().state != "running":
            # It ended while the question stood.
            self.exit(self._exit_code())
            return
        self.source.stop()
        self.exit(EXIT_INTERRUPTED)

    def _exit_code(self) -> int:
        """Of a live run by how it ended; looking at a file is always a success."""
        if not self.source.live:
            return EXIT_OK
        snapshot = self.source.snapshot()
        failed = [e for e in snapshot.engines if e.state == "failed"]
        if snapshot.state == "interrupted":
            return EXIT_INTERRUPTED
        if snapshot.state == "failed" or (failed and len(failed) == len(snapshot.engines)):
            return EXIT_NOTHING_RAN
        return EXIT_ENGINE_FAILED if failed else EXIT_OK
