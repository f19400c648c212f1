"""Ranks that a package starts itself with multiprocessing (exllamav3's tensor parallelism)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import spawned_ranks
from waiting import until

from llmprof.children.child import BOOT
from llmprof.engines.exllama.v3_ranks import RankProcesses
from llmprof.errors import EngineFailure
from llmprof.tracers.pyspy import metronome

SUPPORT = Path(spawned_ranks.__file__).parent


@pytest.fixture
def group() -> Iterator[tuple[RankProcesses, dict]]:
    """Ranks 1 and 2, and the process without a GPU."""
    module = SimpleNamespace(Process=spawned_ranks.context.Process)
    ranks = RankProcesses(None, "kernels", ("made_up_ext", ""))
    with ranks.started_by(module):
        processes = spawned_ranks.started(module, [1, 2, -1])
    assert module.Process is spawned_ranks.context.Process
    for device, (process, pipe) in processes.items():
        assert pipe.recv() == ("ready", device, [1, 2, -1], process.pid, False)
    yield ranks, processes
    ranks.closing()
    for process, _ in processes.values():
        process.kill()
        process.join()


def test_every_gpu_is_a_rank_and_the_packages_own_talk_goes_on(group) -> None:
    ranks, processes = group
    assert [(one.rank, one.device) for one in ranks.all] == [
        (0, "cuda:0"),
        (1, "cuda:1"),
        (2, "cuda:2"),
    ]
    assert [one.pid for one in ranks.all] == [os.getpid(), *(processes[n][0].pid for n in (1, 2))]
    begun = ranks.ask_all({"do": "begin_trace", "serial": 3})
    assert begun == {1: {"unavailable": ""}, 2: {"unavailable": ""}}
    for _, pipe in processes.values():
        pipe.send("step")
        assert pipe.recv() == "done"
    ended = ranks.ask_all({"do": "end_trace", "serial": 3})
    assert set(ended) == {1, 2}
    assert ended[1]["unavailable"] == "kernels of this rank were not recorded"


def test_a_question_that_a_rank_cannot_answer_names_it(group) -> None:
    ranks, _ = group
    with pytest.raises(EngineFailure, match="exllamav3: rank 2: KeyError"):
        ranks.ask({2: {"do": "metronome"}})


def test_each_rank_dates_the_samples_of_its_host_stacks(group, tmp_path: Path) -> None:
    ranks, _ = group
    boards = {rank: metronome.Board(tmp_path / str(rank), create=True) for rank in (1, 2)}
    asks = {
        rank: {
            "do": "metronome",
            "board": str(tmp_path / str(rank)),
            "tick_ns": 1_000_000,
            "reader": os.getpid(),
        }
        for rank in boards
    }
    beats = {rank: facts["pid"] for rank, facts in ranks.ask(asks).items()}
    assert len({*beats.values(), *(one.pid for one in ranks.all)}) == 5
    for board in boards.values():
        until(lambda board=board: board.running)
        board.close()


def test_a_rank_that_dies_is_named_with_its_signal(group) -> None:
    ranks, processes = group
    victim = processes[2][0]
    ranks._closing = True  # else this process would end as a worker does
    os.kill(victim.pid, signal.SIGKILL)
    said = rf"rank 2 \(process {victim.pid}\) was killed by SIGKILL; the other ranks were stopped"
    with pytest.raises(EngineFailure, match=said):
        ranks.ask_all({"do": "begin_trace", "serial": 1})
    with pytest.raises(EngineFailure, match=said), ranks.failures():
        raise TimeoutError("Timed out waiting for worker")


def test_what_fails_while_all_ranks_live_stays_what_it_is(group) -> None:
    ranks, _ = group
    with pytest.raises(RuntimeError, match="no such thing"), ranks.failures():
        raise RuntimeError("no such thing")


def test_ranks_of_a_worker_find_llmprof_and_the_extension(tmp_path: Path) -> None:
    extension = tmp_path / "made_up_ext.py"
    extension.write_text("")
    read, write = os.pipe()
    # -S: without the site-packages that have llmprof.
    command = [sys.executable, "-S", str(BOOT), "0", str(write), "spawned_ranks"]
    environment = {
        **os.environ, "PYTHONPATH": str(SUPPORT), "MADE_UP_EXTENSION": str(extension)
    }  # fmt: skip
    process = subprocess.Popen(command, pass_fds=(write,), env=environment)
    os.close(write)
    with os.fdopen(read) as lines:
        text = lines.read()
    assert process.wait(30) == 0
    document = json.loads(text)
    assert document["answers"] == {"1": {"unavailable": "kernels of this rank were not recorded"}}
    said = {device: (facts[0], facts[3]) for device, facts in document["said"].items()}
    assert said == {"1": (1, True), "-1": (-1, True)}
