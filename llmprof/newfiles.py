"""Files and folders that appear whole, under a name that nobody else has taken. Standard library.

Looking for a name and then creating it lets two programs take the same one: six runs of a job
array, started in the same second, once had two run files between them. Every name is taken by
creating it, and finished work is put in its place without overwriting what stands there.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def first_free(folder: Path, stem: str, suffix: str, numbered: bool = False) -> Path:
    """Create the first of ``stem.x``, ``stem-2.x``, ``stem-3.x`` … that nobody has.

    Args:
        suffix: with its dot.
        numbered: begin with ``stem-1.x``.

    Returns:
        Its path: an empty file that only the caller writes to.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    number = 1
    while True:
        name = f"{stem}-{number}{suffix}" if number > 1 or numbered else f"{stem}{suffix}"
        with suppress(FileExistsError):
            _create(folder / name)
            return folder / name
        number += 1


@contextmanager
def hidden_beside(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, for what becomes it; removed at the end, with what is left.

    Raises:
        OSError: the folder of ``target`` is missing or cannot be written.
    """
    made = tempfile.mkdtemp(prefix=f".{target.name[:80]}.", suffix=".part", dir=target.parent)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


class OwnFolder:
    """A new folder for as long as this process lives.

    Nothing of a killed process removes its folders, so each is held locked, and the next one that
    is made in the same place removes those of its prefix that nobody holds.

    Args:
        prefix: of its name, and of no other program's.
        place: where it is made; by default where temporary files go.

    Raises:
        OSError: the place is missing or cannot be written.
    """

    def __init__(self, prefix: str, place: Path | str | None = None) -> None:
        parent = Path(tempfile.gettempdir() if place is None else place)
        _remove_orphans(parent, prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # a file system without locks: nobody will take it for an orphan
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def cleanup(self) -> None:
        """Remove it; twice is fine."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.cleanup()


YOUNG_S = 60.0
"""An unlocked folder may have been made just now."""


def _remove_orphans(parent: Path, prefix: str) -> None:
    for path in sorted(parent.glob(f"{glob.escape(prefix)}*")):
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # a file or a link, somebody else's, or gone
        try:
            facts = os.fstat(held)
            if facts.st_uid == os.geteuid() and time.time() - facts.st_mtime > YOUNG_S:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its process lives, or the file system has no locks
        finally:
            os.close(held)


def publish(part: Path, target: Path) -> None:
    """Give finished work (a file, or a folder) the name ``target``, on the same file system.

    Raises:
        FileExistsError: somebody has that name; ``part`` stays as it is.
        OSError: it cannot be renamed.
    """
    if part.is_dir():
        target.mkdir()
        try:
            part.rename(target)  # over a folder only where that is empty, as ours is
        except BaseException:
            with suppress(OSError):
                target.rmdir()
            raise
        return
    _create(target)
    try:
        part.replace(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Nobody else is in this block with the same lock file, which stays; it ends with the process.

    Where the file system has no locks, nobody is kept out.

    Raises:
        BlockingIOError: somebody is.
        OSError: the file cannot be made.
    """
    number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as why:
            if why.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        yield
    finally:
        os.close(number)


def write_whole(target: Path, text: str) -> None:
    """Put ``text`` in place of the file ``target``: another reader sees the old or the new one.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    with hidden_beside(target) as folder:
        part = folder / target.name
        part.write_text(text, encoding="utf-8")
        part.replace(target)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
