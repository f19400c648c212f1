"""Real terminals: tmux, sshd on loopback, pyte; the terminal is left as it was found."""

from __future__ import annotations

import getpass
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pyte
import pytest

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "h100_graph.sqlite"
OPEN = [sys.executable, "-m", "llmprof", "open", str(FIXTURE)]
WAIT_S = 90.0


def until(look: Callable[[], str], *wanted: str) -> str:
    """What ``look`` gives once it holds all of ``wanted``."""
    end = time.monotonic() + WAIT_S
    seen = ""
    while time.monotonic() < end:
        seen = look()
        if all(text in seen for text in wanted):
            return seen
        time.sleep(0.1)
    lines = "\n".join(repr(line) for line in seen.split("\n"))
    raise AssertionError(f"{wanted} did not come; the screen was\n{lines}")


class Terminal:
    """A process on a pseudo-terminal, and the screen that pyte makes of its output."""

    def __init__(self, command: list[str], cols: int = 120, rows: int = 40, **environ: str) -> None:
        self.screen = pyte.Screen(cols, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            env = {
                k: v
                for k, v in os.environ.items()
                if k not in ("NO_COLOR", "COLORTERM", "LLMPROF_GLYPHS", "COLUMNS", "LINES")
            }
            env.update({"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "", **environ})
            ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            os.execvpe(command[0], command, env)
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.before = termios.tcgetattr(self.master)

    def read(self) -> str:
        while select.select([self.master], [], [], 0.05)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:
                break
            if not data:
                break
            self.raw += data
            # Kitty's key protocol is private mode that pyte takes for text.
            self.stream.feed(data.replace(b"\x1b[>1u", b"").replace(b"\x1b[<u", b""))
        return "\n".join(self.screen.display)

    def until(self, *wanted: str) -> str:
        return until(self.read, *wanted)

    def until_not(self, *gone: str) -> str:
        """The screen once none of these is on it."""
        end = time.monotonic() + WAIT_S
        while any(text in (seen := self.read()) for text in gone):
            assert time.monotonic() < end, seen
            time.sleep(0.1)
        return seen

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, cols: int, rows: int) -> None:
        self.screen.resize(rows, cols)
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        os.kill(self.pid, signal.SIGWINCH)

    def code(self) -> int:
        """Exit status, with everything read that came before."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                self.read()
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it does not end:\n" + "\n".join(self.screen.display))

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.master)

    def assert_clean(self) -> None:
        """Alternate screen left, cursor shown, mouse and paste modes off, echo on again."""
        for on, off in (
            (b"\x1b[?1049h", b"\x1b[?1049l"),
            (b"\x1b[?25l", b"\x1b[?25h"),
            (b"\x1b[?1000h", b"\x1b[?1000l"),
            (b"\x1b[?1003h", b"\x1b[?1003l"),
            (b"\x1b[?2004h", b"\x1b[?2004l"),
        ):
            if on in self.raw:
                assert self.raw.rfind(off) > self.raw.rfind(on), on
        assert termios.tcgetattr(self.master)[3] == self.before[3]


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*args, **kwargs) -> Terminal:
        made.append(Terminal(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- pyte: what a terminal shows --------------------------------------------------------------


def test_timeline_in_a_terminal_and_a_clean_end(terminal) -> None:
    shell = terminal(OPEN)
    shell.until("finished", "ms/token")
    shell.press("3n")
    shell.until("timeline", "slowest of 4")
    shell.press("w]")
    shell.until("registers", "kernel")
    shell.press("q")
    assert shell.code() == 0
    shell.assert_clean()


def test_resizing_lays_the_page_out_anew(terminal) -> None:
    shell = terminal(OPEN, 120, 40)
    shell.until("ms/token")
    shell.press("3")
    shell.until("timeline", "nothing selected")
    shell.resize(80, 24)
    shown = shell.until("by step", "q Quit")
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    shell.resize(200, 60)
    until(lambda: str(max(len(line.rstrip()) for line in shell.read().splitlines())), "199")
    shell.press("q")
    assert shell.code() == 0


def test_ctrl_c_ends_a_replay_and_leaves_the_terminal_clean(terminal) -> None:
    shell = terminal(OPEN)
    shell.until("finished")
    shell.press("\x03")
    assert shell.code() == 0
    shell.assert_clean()


CRASH = """
import sys
sys.path.insert(0, {tests!r})
import tui_snapshots_data as data
from llmprof.tui import run_app
class Source(data.FixedSource):
    calls = 0
    def snapshot(self):
        self.calls += 1
        if self.calls > 4:
            raise RuntimeError("a mistake in the program")
        return self.now
sys.exit(run_app(Source(data.LIVE), refresh_hz=4))
"""


def test_a_crash_leaves_the_terminal_clean(terminal) -> None:
    program = CRASH.format(tests=str(ROOT / "tests" / "support"))
    shell = terminal([sys.executable, "-c", program])
    assert shell.code() != 0
    assert b"a mistake in the program" in shell.raw
    shell.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_live_run_is_stopped_and_kept(terminal, tmp_path, number) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "run.sqlite"
    arguments = ["--engine", "torch", "--model", "tiny", "--rounds", "100000", "-o", str(out)]
    shell = terminal([sys.executable, "-m", "llmprof", *arguments])
    shell.until("running", "torch")  # the warm-up may be over before the screen is read
    os.kill(shell.pid, number)
    shell.code()
    shell.assert_clean()
    assert out.exists()


def sgr(text: str) -> set[int]:
    """All numbers of the colour and style sequences."""
    found = re.findall("\x1b\\[([0-9;]*)m", text)
    return {int(code) for sequence in found for code in sequence.split(";") if code}


def test_no_colour_and_no_unicode(terminal) -> None:
    shell = terminal(OPEN, TERM="xterm", LANG="C", LC_ALL="C", NO_COLOR="1")
    shell.until("finished", "ms/token")
    shell.press("3n4")
    shell.until("as fast as torch")
    text = shell.raw.decode("ascii")  # no Unicode at all
    shell.press("q")
    assert shell.code() == 0
    # Default colours (39, 49) are no colours.
    assert not {c for c in sgr(text) if c not in (39, 49) and 30 <= c <= 107}


def test_sixteen_colours(terminal) -> None:
    shell = terminal(OPEN, TERM="xterm")
    shell.until("finished", "ms/token")
    shell.press("3n")
    shell.until("timeline", "slowest of 4")
    codes = sgr(shell.raw.decode())
    assert codes & {94, 92, 93} and not codes & {38, 48}


# --- bytes ------------------------------------------------------------------------------------


def test_a_live_screen_keeps_its_byte_budget() -> None:
    """At the pty, 120×40, two engines, 2 Hz: what a slow line has to carry."""
    budget = [sys.executable, str(ROOT / "benchmarks" / "tui_bytes.py"), "--seconds", "5"]
    done = subprocess.run(budget, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# --- tmux and ssh -----------------------------------------------------------------------------


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """tmux with a server of its own."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    base = ["tmux", "-f", "/dev/null", "-S", str(tmp_path / "tmux")]

    def run(*arguments: str) -> str:
        done = subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    yield run
    run("kill-server")


def test_under_tmux_it_survives_a_resize(tmux) -> None:
    command = f"LANG=C.UTF-8 {shlex.join(OPEN)}; echo ENDED; sleep 30"
    tmux("new-session", "-d", "-s", "t", "-x", "120", "-y", "40", command)

    def look() -> str:
        return tmux("capture-pane", "-pt", "t")

    until(look, "finished", "ms/token")
    tmux("send-keys", "-t", "t", "3", "n")
    until(look, "slowest of 4")
    tmux("resize-window", "-t", "t", "-x", "80", "-y", "24")
    until(look, "slowest of 4", "q Quit")
    tmux("send-keys", "-t", "t", "q")
    shown = until(look, "ENDED")
    assert "timeline" not in shown  # the alternate screen is gone


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[list[str]]:
    """A command that logs in to an sshd of our own on loopback."""
    sshd, keygen = shutil.which("sshd") or "/usr/sbin/sshd", shutil.which("ssh-keygen")
    if not Path(sshd).exists() or keygen is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd and ssh")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        key = ["-t", "ed25519", "-N", "", "-q", "-f", str(tmp_path / name)]
        subprocess.run([keygen, *key], check=True)
    (tmp_path / "keys").write_text((tmp_path / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile {tmp_path}/pid\n"
        f"AuthorizedKeysFile {tmp_path}/keys\nPasswordAuthentication no\nStrictModes no\n"
        "UsePAM no\nPermitRootLogin yes\nAcceptEnv LANG\n"
    )
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)
    end = time.monotonic() + 10
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    client = ["ssh", "-tt", "-F", "/dev/null", "-i", str(tmp_path / "user"), "-p", str(port),
              "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known",
              "-o", "LogLevel=ERROR", f"{getpass.getuser()}@127.0.0.1"]  # fmt: skip
    probe_login = subprocess.run([*client, "true"], capture_output=True, timeout=60)
    if probe_login.returncode != 0:
        server.kill()
        said = server.communicate()[1].decode(errors="replace")
        pytest.skip(f"no login to an sshd of our own: {said[-300:]}")
    yield client
    server.terminate()
    server.wait(60)


def test_over_ssh_with_resize(terminal, ssh) -> None:
    shell = terminal([*ssh, f"cd {shlex.quote(str(ROOT))} && LANG=C.UTF-8 {shlex.join(OPEN)}"])
    shell.until("finished", "ms/token")
    shell.press("3n")
    shell.until("slowest of 4")
    shell.resize(80, 24)
    shown = shell.until("q Quit", "slowest of 4")
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    shell.press("q")
    assert shell.code() == 0
    shell.assert_clean()


def test_disconnected_and_reattached_under_tmux(terminal, ssh, tmp_path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    tmux = f"tmux -f /dev/null -S {tmp_path}/far"
    start = f"LANG=C.UTF-8 {tmux} new-session -s far {shlex.quote(shlex.join(OPEN))}"
    first = terminal([*ssh, f"cd {shlex.quote(str(ROOT))} && {start}"])
    try:
        first.until("finished", "ms/token")
        first.press("3n")
        first.until("slowest of 4")
        os.kill(first.pid, signal.SIGKILL)  # the line drops
        first.code()
        second = terminal([*ssh, f"LANG=C.UTF-8 {tmux} attach -t far"], 100, 30)
        second.until("timeline", "slowest of 4")
        second.press("4")
        second.until("as fast as torch")
        second.press("q")
        second.code()
    finally:
        subprocess.run([*tmux.split(), "kill-server"], capture_output=True)


@pytest.mark.parametrize("live", [False, True])
def test_a_lost_terminal_ends_it_without_sighup(live: bool, tmp_path: Path) -> None:
    """As under nohup. The run is stopped and its file opens."""
    run = tmp_path / "run.sqlite"
    command = OPEN
    if live:
        command = [
            sys.executable,
            "-m",
            "llmprof",
            "--engine",
            "torch:threads=1",
            "--model",
            "tiny",
        ]
        command += ["--prompt-len", "16", "--rounds", "100000", "-o", str(run)]
    terminal = Terminal(["sh", "-c", f"trap '' HUP; exec {shlex.join(command)}"])
    terminal.until("timing" if live else "ms/token")
    os.close(terminal.master)
    end = time.monotonic() + WAIT_S
    gone = 0
    while not gone and time.monotonic() < end:
        gone, _ = os.waitpid(terminal.pid, os.WNOHANG)
        time.sleep(0.1)
    if not gone:
        os.kill(terminal.pid, signal.SIGKILL)
    assert gone
    if live:
        report = [sys.executable, "-m", "llmprof", "--headless", "--from", str(run)]
        done = subprocess.run(report, capture_output=True, text=True, check=False)
        assert done.returncode == 130 and "interrupted" in done.stdout
