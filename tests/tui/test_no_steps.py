"""A trace in which nobody knows a step: all of it is shown, and what needs steps says so."""

from __future__ import annotations

from pathlib import Path

import kineto_factory
import pytest
from tui_pilot import settled

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.opening import open_run
from llmprof.traces.opened import readable
from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.cells import text_of
from llmprof.tui.shell.app import LlmprofApp


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels of growing distance and no range: nothing repeats."""
    folder = tmp_path_factory.mktemp("nosteps")
    events = []
    for n in range(40):
        at = kineto_factory.BASE_US + 40 * n + 3 * n * n
        name = f"gemm_{n % 7}" if n % 3 else "flash_fwd_kernel"
        events.append(kineto_factory.event(
            "cuda_runtime", "cudaLaunchKernel", at - 5, 2.0, 77, 77, correlation=n + 1
        ))  # fmt: skip
        events.append(kineto_factory.event(
            "kernel", name, at, 10.0 + n, 0, 7, correlation=n + 1, device=0, stream=7
        ))  # fmt: skip
    return readable(kineto_factory.write(folder / "t.json", kineto_factory.document(events)))


def body(app: LlmprofApp) -> str:
    return "\n".join(text_of(r) for r in app.main.query_one("#body", Canvas).rows)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_timeline_has_its_kernels(path: Path, size: tuple[int, int]) -> None:
    app = LlmprofApp(RunDataSource(open_run(path)))
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        assert "no steps are known: where the whole trace goes" in body(app)
        assert "p chooses the ranges" in body(app)
        await pilot.press("3")
        text = body(app)
        assert "no steps are known · by time" in text and "whole trace" in text
        assert "kernels     40" in text
        row = next(line for line in text.splitlines() if line.startswith("kernels"))
        assert "G" in row and "A" in row
        for key in ("n", "m", "N", "a", "r", "R", "0", "v"):
            await pilot.press(key)
            assert "median" not in body(app).replace("m median", "")
        await pilot.press("0", "w")
        text = body(app)
        assert "of trace" in text and "rank 1 of 39" in text
        await pilot.press("right_square_bracket", "enter")
        assert "% of the trace" in body(app)


async def test_compare_shows_all_kernels_whatever_the_basis(path: Path) -> None:
    app = LlmprofApp(RunDataSource(open_run(path)))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("4")
        for _ in range(3):
            assert "in all" in body(app) and "a step" not in body(app)
            await pilot.press("b")
