"""All formats of ``llmprof sweep report``, and the one way to write them."""

from __future__ import annotations

import os
from pathlib import Path

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, UsageError
from llmprof.newfiles import hidden_beside, publish
from llmprof.plaintext import one_line
from llmprof.sweep.report.content import Content, content
from llmprof.sweep.store import Store


def write(store: Store, to: str, out: Path, over: str = "") -> None:
    """Write the report; a file of that name is replaced by a whole one only.

    Raises:
        UsageError: nothing has ended, a bad axis, or ``out`` cannot be written.
        MissingPackage: pictures need matplotlib.
    """
    if to in ("png", "svg", "html"):
        _check_matplotlib()
    shown = content(store, over)
    given_by_user = out.parent != store.folder
    if given_by_user and os.path.lexists(out):
        raise UsageError(f"{one_line(str(out))}: exists already: remove it or use another name")
    try:
        with hidden_beside(out) as hidden:
            part = hidden / out.name
            _write(shown, to, part)
            if given_by_user:
                publish(part, out)
            else:
                part.replace(out)
    except OSError as why:
        raise UsageError(
            f"{one_line(str(out))}: cannot be written: {why.strerror or why}"
        ) from None


def _write(shown: Content, to: str, part: Path) -> None:
    if to == "csv":
        from llmprof.sweep.report.tables import csv_text

        part.write_text(csv_text(shown.rows), encoding="utf-8", newline="")
    elif to == "md":
        from llmprof.sweep.report.tables import markdown

        part.write_text(markdown(shown), encoding="utf-8")
    elif to == "html":
        from llmprof.sweep.report.page import html_text

        part.write_text(html_text(shown), encoding="utf-8")
    else:
        from llmprof.sweep.report.pictures import picture

        part.write_bytes(picture(shown, to))


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingPackage(
            f"pictures of a sweep need matplotlib: {how_to_install('plot')}; --to md and csv do not"
        )
