"""Files that the docs name are there: modules and tests move, and their names stay behind."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|c|cu|toml))[:`]")
PLACES = ("", "llmprof", "tests")
"""A module is named from the package on, a script from the checkout on."""


def test_named_files_are_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {(page.name, found) for page in pages for found in NAMED.findall(page.read_text())}
    assert len(named) > 100
    gone = [pair for pair in named if not any((ROOT / p / pair[1]).is_file() for p in PLACES)]
    assert not gone
