"""A package that starts its ranks as exllamav3 does (model_tp.py): what ``v3_ranks`` replaces in
it, and what runs in the ranks. As a module of ``boot.py`` it plays a whole engine."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from types import SimpleNamespace
from typing import Any

context = multiprocessing.get_context("spawn")


def rank(conn: Any, device: int, devices: list[int]) -> None:
    """``mp_model_worker``: does what it is told until "quit"."""
    sys.modules["torch"] = SimpleNamespace(  # type: ignore[assignment]
        cuda=SimpleNamespace(synchronize=lambda device: None)
    )
    conn.send(("ready", device, devices, os.getpid(), "made_up_ext" in sys.modules))
    while conn.recv() != "quit":
        conn.send("done")


def started(module: Any, devices: list[int]) -> dict[int, tuple[Any, Any]]:
    """Device → (process, pipe), as ``create_tp_context`` makes them."""
    found = {}
    for device in devices:
        mine, theirs = context.Pipe()
        process = module.Process(target=rank, args=(theirs, device, devices))
        process.start()
        found[device] = process, mine
    return found


def serve(read_fd: int, write_fd: int) -> None:
    """Under ``boot.py``: one rank behind this process; what it answered goes to ``write_fd``."""
    from llmprof.engines.exllama.v3_ranks import RankProcesses

    module = SimpleNamespace(Process=context.Process)
    extension = "made_up_ext", os.environ["MADE_UP_EXTENSION"]
    ranks = RankProcesses(None, "kernels", extension)
    with ranks.started_by(module):
        processes = started(module, [1, -1])
    said = {device: pipe.recv()[1:] for device, (_, pipe) in processes.items()}
    for device, (process, _) in processes.items():
        assert said[device][2] == process.pid
    answers = ranks.ask_all({"do": "end_trace", "serial": 1})
    ranks.closing()
    for process, pipe in processes.values():
        pipe.send("quit")
        process.join(10)
    with os.fdopen(write_fd, "w") as out:
        json.dump({"answers": answers, "said": said}, out)
