"""llmprof without arguments: what there is to do, and the runs that there are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from textual.widgets import Input

from llmprof import cli
from llmprof.analysis.view.recent import Recent, age_words, described, run_files
from llmprof.cli import home_command
from llmprof.tui.drawing.canvas import Canvas, strip
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.home.screen import HomeApp, State, Wish, page

FIXTURE = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"
RUNS = (
    Recent(Path("/runs/a.sqlite"), 90.0, "llama2-7b · 16 bits · H100", ("torch", "mlc"),
           "mlc is 2.00× as fast as torch (1.90–2.10)"),
    Recent(Path("/runs/b\x1b[2J.sqlite"), 0.0, "", (), "is no SQLite file \x1b]0;x", False),
    Recent(Path("/runs/c.sqlite"), 7200.0, "tiny", ("torch",), "55.0 tok/s"),
)  # fmt: skip


def app(doors=("run", "record", "open", "sweep")) -> HomeApp:
    return HomeApp(lambda: RUNS, doors, "/runs")


async def ready(pilot) -> None:
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def shown(found: HomeApp) -> str:
    return "\n".join(text_of(r) for canvas in found.home.query(Canvas) for r in canvas.rows)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_picture(size, snap_compare) -> None:
    assert snap_compare(app(), terminal_size=size, run_before=ready)


@pytest.mark.parametrize("width", [60, 78, 198])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_rows_stay_inside_and_show_nothing_of_a_file_as_it_is(width: int, glyphs) -> None:
    for cursor in range(len(RUNS)):
        rows = page(State(RUNS, reading=False, cursor=cursor), glyphs, width)
        assert max(width_of(line) for line in rows) <= width
        assert "\x1b" not in "".join(text_of(line) for line in rows)
        if glyphs.ascii:
            assert all(strip(line, glyphs).text.isascii() for line in rows)


async def wish_of(*keys: str, text: str = "") -> Wish | None:
    found = app()
    async with found.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press(*keys)
        await pilot.pause()
        if text:
            found.screen.query_one(Input).value = text
            await pilot.press("enter")
            await pilot.pause()
    return found.return_value


async def test_each_door_is_two_keys_away() -> None:
    assert await wish_of("r") == Wish("run")
    assert await wish_of("enter") == Wish("open", "/runs/a.sqlite")
    assert await wish_of("j", "j", "enter") == Wish("open", "/runs/c.sqlite")
    assert await wish_of("c", text="python x.py") == Wish("record", "python x.py")
    assert await wish_of("o", text="t.json") == Wish("open", "t.json")
    assert await wish_of("s", text="--batch 1,8") == Wish("sweep", "--batch 1,8")
    assert await wish_of("q") is None


async def test_what_cannot_be_done_is_not_offered() -> None:
    found = app(("open",))
    async with found.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert "record a program" not in shown(found)
        await pilot.press("c", "r", "s")
        assert found.screen is found.home


def test_runs_of_a_folder_newest_first_and_what_is_none_says_why(tmp_path: Path) -> None:
    shutil.copy(FIXTURE, tmp_path / "old.sqlite")
    os.utime(tmp_path / "old.sqlite", (1, 1))
    shutil.copy(FIXTURE, tmp_path / "new.sqlite")
    (tmp_path / "bad.sqlite").write_text("no run")
    (tmp_path / "empty.sqlite").touch()
    (tmp_path / "other.txt").write_text("x")
    files = run_files([tmp_path, tmp_path / "missing", tmp_path])
    assert sorted(f.name for f in files) == ["bad.sqlite", "new.sqlite", "old.sqlite"]
    assert files[-1].name == "old.sqlite"
    found = {run.path.name: run for run in described(files)}
    assert not found["bad.sqlite"].readable
    assert "no SQLite file" in found["bad.sqlite"].verdict
    assert found["new.sqlite"].engines == ("torch", "torch:cuda_graph=1")
    assert "1.68× as fast" in found["new.sqlite"].verdict
    assert found["new.sqlite"].what == "llama2-7b · random fp16 · H100 80GB"
    assert len(run_files([tmp_path], 1)) == 1


def test_ages() -> None:
    assert [age_words(s) for s in (5, 90, 7200, 3 * 86400)] == ["5 s", "2 min", "2 h", "3 d"]


def test_open_without_a_file_lists_runs_where_there_is_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "llmprof" / "runs"
    folder.mkdir(parents=True)
    environ = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}

    def opened(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llmprof", "open", *more], capture_output=True, text=True,
            env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    none = opened()
    assert none.returncode != 0
    assert none.stderr.startswith("llmprof: no run in ")
    shutil.copy(FIXTURE, folder / "run.sqlite")
    for done in (opened(), opened(str(folder))):
        assert done.returncode == 0, done.stderr
        path, _, engines, verdict = done.stdout.strip().split("\t")
        assert path == str((folder / "run.sqlite").resolve())
        assert engines == "torch vs torch:cuda_graph=1"
        assert "as fast" in verdict


def test_a_wish_runs_the_command_that_one_would_type(monkeypatch) -> None:
    typed = []
    monkeypatch.setattr(cli, "main", lambda words: typed.append(words) or 7)
    assert home_command.command("record", "python 'a b.py' --x") == 7
    home_command.command("open", "~/x.sqlite")
    home_command.command("sweep", "--batch 1,8")
    assert typed == [
        ["record", "--", "python", "a b.py", "--x"],
        ["open", str(Path.home() / "x.sqlite")],
        ["sweep", "--batch", "1,8"],
    ]
    with pytest.raises(Exception, match="No closing quotation"):
        home_command.command("record", "python 'x")
