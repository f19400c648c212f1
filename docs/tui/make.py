"""Screenshots of every screen at three sizes, from the run recorded on an H100.

python docs/tui/make.py
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ.update(LLMPROF_GLYPHS="unicode", COLORTERM="truecolor", TERM="xterm-256color")
os.environ.pop("NO_COLOR", None)

from test_tui_setup import DEFAULTS, FACTS  # noqa: E402
from tui_snapshots_data import LIVE, FixedSource  # noqa: E402

from llmprof.analysis.live import RunDataSource  # noqa: E402
from llmprof.runfile.reader import RunFileReader  # noqa: E402
from llmprof.tui.app import LlmprofApp  # noqa: E402
from llmprof.tui.setup import Choice, Facts, SetupApp  # noqa: E402

SIZES = ((80, 24), (120, 40), (200, 60))
SCREENS = {
    "steps": "1", "summary": "2", "timeline": "3", "step": "3 n", "gap": "3 n w w",
    "kernel": "3 n w right_square_bracket enter", "time": "3 a", "sampled": "3 r n",
    "compare": "4", "help": "3 question_mark", "export": "3 e",
}  # fmt: skip


def replay() -> LlmprofApp:
    with RunFileReader(ROOT / "tests" / "fixtures" / "h100_graph.sqlite") as reader:
        return LlmprofApp(RunDataSource(reader.run_data()))


async def shot(app: LlmprofApp | SetupApp, keys: str, size: tuple[int, int], name: str) -> None:
    async with app.run_test(size=size) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()
        await pilot.press(*keys.split())
        await pilot.pause()
        svg = app.export_screenshot(title="llmprof")
    (HERE / f"{name}-{size[0]}x{size[1]}.svg").write_text(svg, encoding="utf-8")


async def main() -> None:
    os.chdir("/")
    facts = Facts(FACTS.engines[:3], FACTS.models, FACTS.machine)
    for size in SIZES:
        for name, keys in SCREENS.items():
            await shot(replay(), keys, size, name)
        await shot(LlmprofApp(FixedSource(LIVE)), "1", size, "live")
        await shot(SetupApp(lambda: facts, lambda _: "", Choice(), DEFAULTS), "", size, "setup")


if __name__ == "__main__":
    asyncio.run(main())
