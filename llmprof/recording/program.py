"""The program: started in a process group of its own, its signals, its terminal, its leftovers."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.recording.terminal import OwnTerminal

PASSED_ON = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
GRACE_S = 5.0
"""What is left of the group of a program that a signal ended has so long to end by itself."""
_PR_SET_CHILD_SUBREAPER = 36


def why_not(command: str) -> str:
    """Why no program is found under that name."""
    path = Path(command)
    if os.sep not in command or not path.exists():
        return "no such command"
    if path.is_dir():
        return "it is a folder"
    return "it is not executable (chmod +x, or name its interpreter: python FILE)"


class Program:
    """A command with our stdin, stdout and stderr.

    In a terminal its group is the foreground one, so Ctrl-C, Ctrl-Z and Ctrl-\\ are the program's.
    Orphans of its tree become our children (subreaper) and are reaped.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        terminal: OwnTerminal | None = None,
    ) -> None:
        """Start it. Signals to us wait from here on until ``pass_signals``.

        Args:
            terminal: the program's, instead of ours.

        Raises:
            UsageError: no such command, or it may not be executed.
        """
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._own = terminal
        self._tty = None if terminal is not None else _foreground_terminal()
        self._before: dict[signal.Signals, object] = {}
        self.signalled = False
        self.returncode: int | None = None
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        try:
            self._process = subprocess.Popen(
                list(command), env=dict(environment), preexec_fn=self._in_child, close_fds=True
            )
        except OSError as why:
            self._unblock()
            _take_terminal(self._tty)
            name = one_line(command[0])
            raise UsageError(f"cannot run {name}: {why.strerror or why}") from None
        except subprocess.SubprocessError as why:
            self._unblock()
            _take_terminal(self._tty)
            raise UsageError(f"cannot run {one_line(command[0])}: {why}") from None
        self.pid = self._process.pid

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _in_child(self) -> None:
        self._unblock()
        if self._own is not None:
            self._own.in_child()
            return
        os.setpgid(0, 0)
        if self._tty is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            os.tcsetpgrp(self._tty, os.getpid())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})

    def pass_signals(self) -> None:
        """From now on signals to us go to the program's group. In another thread than the main
        one nothing changes: who has that thread passes them on."""
        if threading.current_thread() is threading.main_thread():
            for number in PASSED_ON:
                self._before[number] = signal.signal(number, self._pass_on)
        self._unblock()

    def keep_signals(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _pass_on(self, number: int, frame: object) -> None:
        self.signal(number)

    def signal(self, number: int) -> None:
        self.signalled = True
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it is gone

    def poll(self) -> int | None:
        """Its return code (negative: the signal), ``None`` while it runs. Follows Ctrl-Z."""
        if self.returncode is not None:
            return self.returncode
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            self.returncode = self._process.returncode = 0
            return 0
        if pid == 0:
            return None
        if os.WIFSTOPPED(status):
            if self._own is None:
                self._stop_too()
            return None
        self.returncode = os.waitstatus_to_exitcode(status)
        self._process.returncode = self.returncode
        _take_terminal(self._tty)
        return self.returncode

    def _stop_too(self) -> None:
        """The shell must see that we stopped; when it continues us, the program goes on."""
        _take_terminal(self._tty)
        os.kill(os.getpid(), signal.SIGSTOP)
        _give_terminal(self._tty, self.pid)
        self.signal(signal.SIGCONT)

    def reap(self, spare: frozenset[int] = frozenset()) -> list[int]:
        """Collect orphans that have ended; the process ids of those that live.

        Args:
            spare: children of ours that somebody else waits for.
        """
        alive = []
        for pid in _children():
            if pid in spare or pid == self.pid:
                continue
            try:
                done, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if not done:
                alive.append(pid)
        return alive

    def end_group(self, spare: frozenset[int] = frozenset()) -> None:
        """Of a program that a signal ended: ask what is left of its group to end, then kill it.

        A killed launcher leaves ranks that hold GPU memory and a port.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline:
                self.reap(spare)
                try:
                    os.killpg(self.pid, 0)
                except (ProcessLookupError, PermissionError):
                    return
                time.sleep(0.05)
            self.signal(number)

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 128 + N for signal N."""
        code = self.returncode or 0
        return code if code >= 0 else 128 - code


def _children() -> list[int]:
    """Our children (proc(5), needs CONFIG_PROC_CHILDREN; empty without it)."""
    found: list[int] = []
    try:
        for task in Path("/proc/self/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    except (OSError, ValueError):
        pass
    return found


def _foreground_terminal() -> int | None:
    """A descriptor of our terminal, where we are in its foreground."""
    for fd in (0, 1, 2):
        try:
            if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp():
                return fd
        except OSError:
            continue
    return None


def _give_terminal(fd: int | None, group: int) -> None:
    if fd is None:
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(fd, group)
    except OSError:
        pass  # the terminal, or the group, is gone
    finally:
        signal.signal(signal.SIGTTOU, before)


def _take_terminal(fd: int | None) -> None:
    _give_terminal(fd, os.getpgrp())
