"""Screenshots of every screen at three sizes, from runs recorded on an H100.

python docs/tui/make.py [RUN.sqlite]
python docs/tui/make.py --pair A.json.gz B.json.gz 'ProfilerStep*'

The pictures of the page memory are of a run that is too large to be kept here, recorded with
``llmprof --engine torch:device=cuda,dtype=fp16,cuda_graph=1 --model llama2-7b``; without it they
stay as they are. ``--pair`` makes that of two traces that others recorded, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
OUT = Path(os.environ.get("LLMPROF_PICTURES", HERE)).resolve()
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("support", "tui")]
os.environ.update(LLMPROF_GLYPHS="unicode", COLORTERM="truecolor", TERM="xterm-256color")
os.environ.pop("NO_COLOR", None)

import rooms  # noqa: E402, F401
import task_files  # noqa: E402
from test_home import RUNS  # noqa: E402
from test_setup import FACTS  # noqa: E402
from textual.widgets import Input  # noqa: E402
from tui_snapshots_data import LIVE, FixedSource  # noqa: E402

from llmprof.analysis.view.frames.live import RunDataSource  # noqa: E402
from llmprof.analysis.view.frames.several import SeveralRuns  # noqa: E402
from llmprof.analysis.view.frames.snapshot import Snapshot  # noqa: E402
from llmprof.analysis.view.opening import open_run  # noqa: E402
from llmprof.cli.files.opening import open_files  # noqa: E402
from llmprof.cli.run.setup_command import _DEFAULTS  # noqa: E402
from llmprof.recording.status import Lane, Status  # noqa: E402
from llmprof.records import GpuSample  # noqa: E402
from llmprof.records.steps import StepChoice  # noqa: E402
from llmprof.runfile.reader import RunFileReader  # noqa: E402
from llmprof.sweep.store import Store  # noqa: E402
from llmprof.tui.home.screen import HomeApp  # noqa: E402
from llmprof.tui.recording.app import RecordApp  # noqa: E402
from llmprof.tui.setup.screen import Choice, Facts, SetupApp  # noqa: E402
from llmprof.tui.shell.app import LlmprofApp  # noqa: E402
from llmprof.tui.sweep.app import SweepApp  # noqa: E402
from llmprof.tui.sweep.page import SweepView  # noqa: E402

DOORS = ("run", "record", "open", "sweep")
SIZES = ((80, 24), (120, 40), (200, 60))
GRAPH, HOST = "h100_graph.sqlite", "h100_host.sqlite"
SCREENS = {
    "steps": (GRAPH, "1"),
    "summary": (GRAPH, "2"),
    "timeline": (GRAPH, "3"),
    "step": (GRAPH, "3 n"),
    "gap": (GRAPH, "3 n w w"),
    "kernel": (GRAPH, "3 n w right_square_bracket enter"),
    "time": (GRAPH, "3 a"),
    "sources": (GRAPH, "2 i j j"),
    "sampled": (GRAPH, "3 r n"),
    "compare": (GRAPH, "4"),
    "text": (GRAPH, "5"),
    "log": (GRAPH, "6"),
    "host": (HOST, "7"),
    "host-gaps": (HOST, "7 g g"),
    "host-lane": (HOST, "3 tab n w"),
    "findings": (GRAPH, "f"),
    "compare-purpose": (GRAPH, "4 u"),
    "help": (GRAPH, "3 question_mark"),
    "export": (GRAPH, "3 e"),
    "palette": (GRAPH, "3 colon s i l u"),
}


PLANTED = {
    "vllm": ("vllm.json.gz", "3 n w"),
    "memory-order": ("memory.sqlite", "8 o"),
    "ranks": ("ranks.sqlite", "x"),
    "ranks-timeline": ("ranks.sqlite", "3"),
    "sweep": ("sweep", ""),
    "sweep-categories": ("sweep", "tab"),
    "sweep-map": ("sweep", "tab tab"),
    "sweep-fits": ("sweep", "tab tab tab"),
}
"""Of the files of ``docs/tasks.md``: no run of a real program that is small enough has these."""


class Replay(RunDataSource):
    """Shows the file's name only: its folder is that of whoever makes the pictures."""

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return replace(found, file=Path(found.file).name)


def replay(file: Path) -> LlmprofApp:
    with RunFileReader(file) as reader:
        return LlmprofApp(Replay(reader.run_data()))


def planted(file: Path) -> LlmprofApp | SweepApp:
    if file.is_dir():
        return SweepApp(Store.open(file), SweepView())
    return LlmprofApp(Replay(open_run(open_files([file])[0])))


def recording() -> RecordApp:
    """A server with two processes on a GPU, a minute into it."""
    now = Status(
        seconds=65.0, kernels=1_204_311, steps=2_310, window_open=True,
        lanes=(Lane("python serve.py", 12, 0, True),
               Lane("VLLM::EngineCore", 1_204_299, 2_310, True)),
        bytes_read=180 << 20,
        samples=(GpuSample(0, 0, gpu_util_pct=97.0, sm_clock_mhz=1980, power_w=512.0,
                           temperature_c=61, memory_used_mib=71_204.0, gpm_dram_bw_pct=58.0),),
        said=(),
    )  # fmt: skip
    return RecordApp(
        command="python serve.py", file="run.sqlite", status=lambda: now,
        output=lambda rows: ["INFO: Started server process [77]", "INFO: startup complete."],
        toggle=lambda: None, stop=lambda: None, resize=lambda rows, columns: None,
        done=lambda: False,
    )  # fmt: skip


async def shot(
    app: LlmprofApp | SetupApp | HomeApp | SweepApp | RecordApp,
    keys: str,
    size: tuple[int, int],
    name: str,
) -> None:
    async with app.run_test(size=size) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()
        await pilot.press(*keys.split())
        await app.workers.wait_for_complete()
        await pilot.pause()
        for entry in app.screen.query(Input):
            entry.cursor_blink = False
        svg = app.export_screenshot(title="llmprof")
    (OUT / f"{name}-{size[0]}x{size[1]}.svg").write_text(svg, encoding="utf-8")


async def pair(a: str, b: str, pattern: str) -> None:
    """The compare page of two files, their steps by a pattern of ranges."""
    files = open_files([Path(a).resolve(), Path(b).resolve()])
    for size in SIZES:
        runs = [open_run(file, StepChoice(pattern=pattern)) for file in files]
        await shot(LlmprofApp(SeveralRuns(runs)), "4", size, "compare-vendors")


async def main() -> None:
    if sys.argv[1:2] == ["--pair"]:
        await pair(*sys.argv[2:5])
        return
    given = [Path(name).resolve() for name in sys.argv[1:]]
    os.chdir("/")
    tasks = task_files.make(Path(tempfile.mkdtemp()))
    facts = Facts(FACTS.engines[:3], FACTS.models, FACTS.machine)
    for size in SIZES:
        for name, (file, keys) in SCREENS.items():
            await shot(replay(ROOT / "tests" / "fixtures" / file), keys, size, name)
        for run in given:
            if run.stem == "planted":
                await shot(replay(run), "8", size, "memory-streams")
                continue
            await shot(replay(run), "8", size, "memory")
            await shot(replay(run), "3 n enter", size, "memory-step")
        await shot(LlmprofApp(FixedSource(LIVE)), "1", size, "live")
        await shot(LlmprofApp(FixedSource(LIVE)), "1 q", size, "stop")
        await shot(HomeApp(lambda: RUNS, DOORS, "/runs"), "", size, "home")
        await shot(recording(), "", size, "recording")
        for name, (file, keys) in PLANTED.items():
            await shot(planted(tasks / file), keys, size, name)
        await shot(SetupApp(lambda: facts, lambda _: "", Choice(), _DEFAULTS), "", size, "setup")


if __name__ == "__main__":
    asyncio.run(main())
