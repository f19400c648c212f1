"""``docs/why-is-my-vllm-step-slow.md`` replayed over twins of its two recordings.

The twins hold one measured step again and again (``vllm_twin``), so numbers differ from the page's:
each line of the page must be printed, numbers aside, in the page's order.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from record_command import kernels
from vllm_twin import write_requests, write_twin

from llmprof.analysis.view.opening import open_run

PAGE = Path(__file__).parents[2] / "docs" / "why-is-my-vllm-step-slow.md"
BLOCK = re.compile(r"^```console\n\$ (?P<command>.+)\n(?P<output>(?:.*\n)*?)```$", re.MULTILINE)
REPLAYED = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the page's program: six requests of 59 decode steps, 50 ms between two."""
    folder = tmp_path_factory.mktemp("requests")
    for kind in ("eager", "graphs"):
        write_requests(folder / f"{kind}.sqlite", kind, 6, 59, 50_000_000)
    return folder


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins")
    for kind in ("eager", "graphs"):
        write_twin(folder / f"{kind}.sqlite", kind)
    return folder


def shape(line: str) -> str:
    """Without numbers, signs and bars, which differ from step to step; blanks as one."""
    line = re.sub(r"[-+−]?\d[\d,.]*", "#", line)
    return " ".join(re.sub(r" -?\+?#{5,}$", "", line).split())


def test_there_is_something_to_replay() -> None:
    words = [shlex.split(command)[1] for command, _ in REPLAYED]
    assert words == ["--headless", "findings", "compare"]


@pytest.mark.parametrize("number", range(len(REPLAYED)))
def test_the_page_says_what_is_printed(llmprof, requests: Path, number: int) -> None:
    command, output = REPLAYED[number]
    words = [str(requests / w) if w.endswith(".sqlite") else w for w in shlex.split(command)[1:]]
    done = llmprof(*words)
    assert done.returncode == 0, done.stderr
    printed = iter([shape(line) for line in done.stdout.splitlines()])
    for line in output.splitlines():
        if line and line != "…":
            wanted = shape(line.removesuffix("…"))
            assert any(p.startswith(wanted) for p in printed), f"not printed (here): {line}"


def test_the_twins_are_what_the_page_says(twins: Path) -> None:
    """125 launches a step and mostly idle; with graphs the same work in a third of the time."""
    reports = {
        name: kernels(open_run(twins / f"{name}.sqlite"), "record_vllm.py")
        for name in ("eager", "graphs")
    }
    eager, graphs = reports["eager"], reports["graphs"]
    assert (eager.kernels_per_step, eager.launches_per_step) == (125, 125)
    assert (graphs.kernels_per_step, graphs.launches_per_step) == (126, 20)
    steps_ms = graphs.wall_ms_per_step, eager.wall_ms_per_step
    work_ms = graphs.busy_ms_per_step, eager.busy_ms_per_step
    assert isinstance(steps_ms[0], float) and isinstance(steps_ms[1], float)
    assert steps_ms[0] < 0.4 * steps_ms[1] and work_ms[0] == pytest.approx(work_ms[1], rel=0.02)
