"""Converted traces in the user's cache folder: made once, found again, bounded in size.

A file's name is a hash of the source's path, size and time and of ``VERSION``, so a source that
changed is converted again. Made under another name, and renamed when it is whole.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llmprof.errors import RunFileError
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line

VERSION = 6
"""Of what a conversion writes; to be raised with every change to it."""
MAX_BYTES = 8 << 30
"""Of all converted traces; the ones not used for longest go first."""
YOUNG_S = 3600
"""A file used so recently stays: somebody may be reading it."""


def converted(sources: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The conversion of ``sources``, from the cache or made now.

    Args:
        make: writes a new file at the path that it is given.

    Raises:
        RunFileError: by ``make``, or there is no room.
    """
    folder = _folder()
    target = folder / f"{_key(sources)}.sqlite"
    if target.is_file():
        with suppress(OSError):
            os.utime(target)
        return target
    handle, name = tempfile.mkstemp(prefix="making-", suffix=".part", dir=folder)
    os.close(handle)
    part = Path(name)
    try:
        make(part)
        part.replace(target)
    except OSError as why:
        raise RunFileError(
            f"{one_line(str(folder))}: cannot be written: {why.strerror or why}; set XDG_CACHE_HOME"
            " to a folder with room"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    _tidy(folder, target)
    return target


def _key(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"{VERSION}".encode())
    for path in sources:
        try:
            found = path.resolve().stat()
        except OSError as why:
            name = one_line(str(path))
            raise RunFileError(f"{name}: cannot be read: {why.strerror}") from None
        # The path as it was given: it is what the user is shown.
        facts = (str(path), str(path.resolve()), found.st_size, found.st_mtime_ns)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _folder() -> Path:
    """In the cache; where that cannot be written, one that goes away with this process."""
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("llmprof")) / "traces"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass  # a read-only home: the fall-back below
    made = OwnFolder("llmprof-traces-")
    atexit.register(made.cleanup)
    return made.path


def _tidy(folder: Path, keep: Path) -> None:
    """Remove what was used longest ago until the rest is small enough, and what a kill left."""
    now, found = time.time(), []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        left_over = path.suffix == ".part"
        if path == keep or now - used < YOUNG_S or not (left_over or total > MAX_BYTES):
            continue
        with suppress(OSError):
            path.unlink()
            total -= size
