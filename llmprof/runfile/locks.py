"""File systems without locks (NFS without lockd, Lustre without flock): SQLite calls them "locked".

With ``nolock=1`` SQLite leaves locks alone. A run file has one writer, and who reads it meanwhile
on such a file system is not protected from it: nothing could do that there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

_HELD = (errno.EAGAIN, errno.EACCES)


def locks_work(path: Path) -> bool:
    """Can a file be locked there? A lock that somebody holds is one that works.

    To be asked while this process has no lock on the file: closing it drops them all (POSIX).
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True  # another trouble, and another message
    try:
        fcntl.lockf(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(number, fcntl.LOCK_UN)
    except OSError as why:
        return why.errno in _HELD
    finally:
        with suppress(OSError):
            os.close(number)
    return True


def writable(path: Path, check_same_thread: bool = True) -> sqlite3.Connection:
    """A connection that writes a file, in autocommit mode; no locks where there are none.

    Args:
        check_same_thread: as ``sqlite3.connect`` has it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    with suppress(OSError):  # SQLite says why
        path.touch(exist_ok=True)
    if locks_work(path):
        return sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread)
    name = f"{path.resolve().as_uri()}?nolock=1"
    return sqlite3.connect(
        name, uri=True, isolation_level=None, check_same_thread=check_same_thread
    )
