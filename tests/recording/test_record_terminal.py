"""``llmprof record`` in a terminal: the live view; without it the terminal is the program's."""

from __future__ import annotations

import os
import pty
import select
import struct
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pyte
import pytest
import recorder_build

from llmprof.recording.status import Lane, Status
from llmprof.records import GpuSample
from llmprof.runfile.reader import RunFileReader
from llmprof.tui.drawing.canvas import strip
from llmprof.tui.drawing.cells import Row
from llmprof.tui.drawing.glyphs import ASCII, UNICODE, Glyphs
from llmprof.tui.recording.lines import LiveLines


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> recorder_build.Built:
    if recorder_build.compiler() is None:
        pytest.skip("no C compiler to build the recorder with")
    return recorder_build.make(tmp_path_factory.mktemp("stubs"), ("-g",))


class Terminal:
    """llmprof record on a pseudo terminal of 100 × 30."""

    def __init__(self, built: recorder_build.Built, folder: Path, *words: str) -> None:
        self.screen = pyte.Screen(100, 30)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.run = folder / "run.sqlite"
        command = [sys.executable, "-m", "llmprof", "record", "-o", str(self.run), *words]
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            more = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "XDG_CACHE_HOME": str(folder)}
            ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            environment = {**os.environ, "LD_LIBRARY_PATH": str(built.folder), **more}
            os.execvpe(command[0], command, environment)

    def until(self, *wanted: str) -> str:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            while select.select([self.master], [], [], 0.1)[0]:
                try:
                    data = os.read(self.master, 1 << 16)
                except OSError:
                    data = b""
                if not data:
                    break
                self.raw += data
                self.stream.feed(data.replace(b"\x1b[>1u", b"").replace(b"\x1b[<u", b""))
            seen = "\n".join(self.screen.display)
            if all(text in seen for text in wanted):
                return seen
        raise AssertionError(f"{wanted} did not come; the screen was\n{seen}")

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def hang_up(self) -> int:
        """The terminal goes away, as at the end of an ssh session, and no SIGHUP comes of it."""
        os.close(self.master)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)


def test_a_terminal_that_goes_away_ends_the_program_and_keeps_what_came(
    built: recorder_build.Built, tmp_path: Path
) -> None:
    script = f"trap '' HUP; exec {built.program} wait 20000 1 1000"
    terminal = Terminal(built, tmp_path, "--", "sh", "-c", script)
    terminal.until("● recording", "recorded_program")
    assert terminal.hang_up() in (129, 143)  # ours for a lost terminal, or the program's
    with RunFileReader(terminal.run) as reader:
        assert reader.run_data().processes


def test_the_live_view_beside_the_program(built: recorder_build.Built, tmp_path: Path) -> None:
    script = f"echo hello from the program; exec {built.program} wait 20000 1 1000"
    terminal = Terminal(built, tmp_path, "--", "sh", "-c", script)
    terminal.until("● recording", "recorded_program", "hello from the program", "ranges")
    terminal.press("w")
    terminal.until("‖ not recording")
    terminal.press("q")
    terminal.until("finished", "[findings]")  # what was recorded, without typing its name
    terminal.press("q")
    assert terminal.end() == 130
    # On the terminal's own screen, to which it has come back (pyte has but one).
    own = terminal.raw.rpartition(b"\x1b[?1049h")[0].rpartition(b"\x1b[?1049l")[2]
    assert b"hello from the program" in own and b"llmprof: run file" in own
    with RunFileReader(terminal.run) as reader:
        data = reader.run_data()
    assert 0 < data.processes[0].kernels < data.processes[0].ranges


def test_the_second_run_is_beside_the_view_too(built: recorder_build.Built, tmp_path: Path) -> None:
    """It must not take the terminal from the view: that stopped llmprof as a background job."""
    script = f"echo hello; {built.program} return 150 2 10000"
    terminal = Terminal(built, tmp_path, "--twice", "--", "sh", "-c", script)
    terminal.until("running the command again", "‖ not recording", "300 kernels")
    terminal.until("finished", "[findings]")
    terminal.press("q")
    assert terminal.end() == 0
    own = terminal.raw.rpartition(b"\x1b[?1049h")[0].rpartition(b"\x1b[?1049l")[2]
    assert own.count(b"hello") == 2
    with RunFileReader(terminal.run) as reader:
        rounds = reader.run_data().rounds
    assert [r.steps for r in rounds if r.pass_name == "timing"] == [150]


def test_headless_the_terminal_is_the_programs(built: recorder_build.Built, tmp_path: Path) -> None:
    """Its group is in the foreground, so it may read, and Ctrl-C is its own."""
    script = (
        "read line; trap 'echo caught; exit 9' INT; echo \"got $line\"; while :; do sleep 0.1; done"
    )
    terminal = Terminal(built, tmp_path, "--headless", "--", "sh", "-c", script)
    terminal.press("something\r")
    terminal.until("got something")
    terminal.press("\x03")
    terminal.until("caught", "llmprof: run file")
    assert terminal.end() == 9


def test_a_job_in_the_background_has_no_view(built: recorder_build.Built, tmp_path: Path) -> None:
    """It would be stopped for it."""
    inner = (
        "env -u CUDA_INJECTION64_PATH -u NVTX_INJECTION64_PATH"
        f" {sys.executable} -m llmprof record -o inner.sqlite -- sh -c 'echo in the job; exit 5'"
    )
    script = f"set -m; cd {tmp_path}; {inner} & wait $!; echo ended with $?"
    terminal = Terminal(built, tmp_path, "--headless", "--", "sh", "-c", script)
    terminal.until("in the job", "run file inner.sqlite", "ended with 5")
    assert terminal.end() == 0


def status(**more: object) -> Status:
    values: dict[str, object] = {
        "seconds": 65.0, "kernels": 1000, "steps": 10, "window_open": True,
        "lanes": (Lane("a\x1b[2Jb", 1000, 10, True),), "bytes_read": 5 << 20,
        "samples": (GpuSample(0, 1, sm_clock_mhz=1980, power_w=412.0),), "said": ("x\ny",),
    }  # fmt: skip
    return Status(**{**values, **more})  # type: ignore[arg-type]


def shown(rows: list[Row], glyphs: Glyphs) -> list[str]:
    return ["".join(segment.text for segment in strip(line, glyphs)) for line in rows]


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("width", [60, 100])
def test_lines(glyphs: Glyphs, width: int) -> None:
    live = LiveLines(glyphs, "python x.py", "run.sqlite")
    assert "starting" in shown(live.header(None, width), glyphs)[0]
    assert live.body(None, width) == []
    live.body(status(), width, 10.0)
    now = status(kernels=3000, steps=30)
    lines = shown([*live.header(now, width), *live.body(now, width, 12.0)], glyphs)
    text = "\n".join(lines)
    assert "python x.py" in lines[0] and "1:05" in lines[0] and "to run.sqlite" in lines[1]
    assert "3,000 kernels, 1000 a second" in text and "GPU 1" in text
    assert "1980 MHz   412 W" in text
    assert "\x1b" not in text and all(len(line) <= width for line in lines)
    if glyphs is ASCII:
        assert text.isascii()


def test_the_busiest_processes_are_shown_where_there_is_no_room_for_all() -> None:
    lanes = tuple(Lane(f"worker {i}", 100 * (i % 5), 0, True) for i in range(12))
    rows = LiveLines(ASCII, "serve", "run.sqlite").body(status(lanes=lanes), 80, 0.0, height=10)
    seen = shown(rows, ASCII)
    assert len(rows) <= 8 and "and 10 processes more" in "\n".join(seen)
    assert [line.split()[2] for line in seen if "worker" in line] == ["4", "9"]
