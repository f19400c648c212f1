"""``.nsys-rep`` files: Nsight Systems' own format, which only nsys can read."""

from __future__ import annotations

import atexit
import shutil
import subprocess
from pathlib import Path

from llmprof.errors import UsageError
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line

EXPORT_TIMEOUT_S = 1800


def readable(path: Path) -> Path:
    """``path`` itself, or the SQLite export of a ``.nsys-rep``, which nsys on PATH makes.

    An export beside it that is newer is taken as it is; a new one goes to a temporary folder.

    Raises:
        UsageError: no nsys on PATH, or it fails; the text says what to do.
    """
    if path.suffix != ".nsys-rep":
        return path
    name = one_line(str(path))
    if not path.is_file():
        raise UsageError(f"{name}: no such file")
    beside = path.with_suffix(".sqlite")
    if beside.is_file() and beside.stat().st_mtime >= path.stat().st_mtime:
        return beside
    nsys = shutil.which("nsys")
    if nsys is None:
        raise UsageError(
            f"{name}: only nsys can read this: put it on PATH, or export the file with "
            "nsys export -t sqlite and open that"
        )
    folder = OwnFolder("llmprof-nsys-")
    atexit.register(folder.cleanup)
    target = folder.path / beside.name
    command = [nsys, "export", "-t", "sqlite", "-f", "true", "-o", str(target), str(path.resolve())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=EXPORT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise UsageError(f"{name}: nsys export did not end: {one_line(str(why))}") from None
    if not target.is_file():  # the exit code of nsys says nothing
        said = one_line((done.stderr or done.stdout).strip(), 200)
        raise UsageError(f"{name}: nsys export made no file: {said}")
    return target
