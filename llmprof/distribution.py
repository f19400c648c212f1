"""How this installation gets an extra. Standard library only; asked when something is missing.

The name ``llmprof`` on PyPI is somebody else's package, so no text may tell anyone to install it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

NAME = "llm-decode-profiler"
"""What pyproject.toml calls the distribution; package and command are ``llmprof``."""
ENTRY = "llmprof.cli:main"
_PACKAGE = Path(__file__).resolve().parent


def how_to_install(extra: str) -> str:
    """The command that adds ``extra`` to the interpreter that asks.

    ``pip install -e '.[mlc]'`` for a checkout (with its path where the current folder is another
    one), else ``pip install 'NAME[mlc]'`` with the name that the installed distribution has. An
    engine's interpreter runs our package without having it installed; it is named then, as a bare
    ``pip`` would be another one's.
    """
    name, editable = _installed()
    pip = "pip" if name else f"{shlex.quote(sys.executable)} -m pip"
    checkout = editable if editable is not None else _checkout()
    if checkout is None:
        return f"{pip} install '{name or NAME}[{extra}]'"
    place = "." if checkout == Path.cwd() else str(checkout)
    return f"{pip} install -e {shlex.quote(f'{place}[{extra}]')}"


def _installed() -> tuple[str | None, Path | None]:
    """Name of the distribution that brings this package's command, and its folder where it is an
    editable installation (direct_url.json, PEP 610)."""
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    for entry in metadata.entry_points(group="console_scripts", name="llmprof"):
        if entry.value != ENTRY or entry.dist is None:
            continue  # the stranger's
        try:
            direct = json.loads(entry.dist.read_text("direct_url.json") or "{}")
            editable = direct.get("dir_info", {}).get("editable") is True
            folder = Path(unquote(urlsplit(direct["url"]).path)) if editable else None
        except (ValueError, KeyError, AttributeError):
            folder = None  # an installer that writes none, or no JSON object
        if folder is not None and folder.resolve() / "llmprof" != _PACKAGE:
            folder = None  # another checkout is installed than the one that runs
        return str(entry.dist.name), folder
    return None, None


def _checkout() -> Path | None:
    """The folder of the sources, where the package runs from there without being installed."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None
