"""The process of a sweep's points: ``llmprof`` commands one after another, which share loads.

Started by ``children/boot.py``, so that it ends with the sweep, however that ends. Requests:
``{"do": "run", "argv": […]}``, answered by its exit code and what it printed, and ``close``.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.cli import run_command_line, streams
from llmprof.newfiles import OwnFolder

if TYPE_CHECKING:
    import argparse


def serve(read_fd: int, write_fd: int) -> None:
    """Answer until ``close`` or the end of the stream. The first request says what is shared."""
    from llmprof.session.kept import KeptWorkers

    streams.settle()
    channel = Channel(read_fd, write_fd)
    kept: KeptWorkers | None = None
    with OwnFolder(".llmprof-series-", _folder()) as folder:
        try:
            while True:
                received = channel.receive()
                if received is None:
                    continue
                ask = received[0]
                if ask["do"] == "close":
                    break
                if kept is None and ask["shares"]:
                    kept = KeptWorkers(folder, ask["most_batch"], ask["most_positions"])
                channel.send({"is": "done", **_ran(ask["argv"], kept)})
        except ChannelClosed:
            pass  # the sweep is gone; nothing is left to tell
        finally:
            if kept is not None:
                kept.drop()
    # Threads of libraries must not hold up what has nothing left to do.
    sys.stderr.flush()


def _ran(argv: list[str], kept: Any) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()

    def lend(arguments: argparse.Namespace) -> None:
        arguments.kept = kept

    with redirect_stdout(out), redirect_stderr(err):
        code = run_command_line(argv, lend)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()[-65536:]}


def _folder() -> str | None:
    """``boot``'s arguments, then where large files may lie."""
    return sys.argv[4] if len(sys.argv) > 4 else None
