"""vLLM as it comes (``record_vllm.py``), recorded: steps, kernels and what llmprof says about them.

Part ``vllm`` of ``run_record.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from recorded_truth import (
    Ahead,
    Launches,
    Recorded,
    agree,
    bounded,
    clock,
    matched_share,
    phases_of,
    reopened,
    say,
    told,
)

from llmprof.records.processes import RecordedProcess
from llmprof.records.steps import counted

VLLM = str(Path(__file__).with_name("record_vllm.py"))
VLLM_RUNS = {"eager": ["eager"], "graphs": ["graphs"], "child": ["graphs", "--child"]}
BOTH = ("eager", "graphs")
AFTER = ("--after", "5steps")
PROCESSES = {"eager": 3, "graphs": 2, "child": 1}
"""Of each tool, in turns: vLLM's attention of 9 µs differs by 10 % from process to process."""


def installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def start(ahead: Ahead, folder: Path) -> None:
    """All of vLLM's programs, recorded and under torch.profiler."""

    def recorded(label: str, command: list[str], options: tuple[str, ...] = ()) -> None:
        work = partial(
            Recorded, folder, label.replace(" ", "-"), *command, options=options, **ahead.turn
        )
        ahead.start(label, work)

    if not installed():
        return
    bounded([sys.executable, VLLM, "warm"], {})  # once, and not by each of them
    for mode in BOTH:
        out = str(folder / f"profile-both-{mode}")
        recorded(f"vllm both {mode}", [sys.executable, VLLM, mode, "--both", out], AFTER)
    for number in range(max(PROCESSES.values())):
        for name, words in VLLM_RUNS.items():
            if number >= PROCESSES[name]:
                continue
            command = [sys.executable, VLLM, *words]
            recorded(f"vllm {name} {number}", command)
            if "--child" not in words:
                out = str(folder / f"profile-{name}-{number}")
                work = partial(told, [*command, "--profile", out], **ahead.turn)
                ahead.start(f"vllm {name} seen", work)


def start_reopened(ahead: Ahead, folder: Path) -> None:
    if not installed():
        return
    bounded([sys.executable, VLLM, "warm"], {})
    for name, words in VLLM_RUNS.items():
        command = [sys.executable, VLLM, *words, "--repeats", "40"]
        work = partial(
            Recorded, folder, f"vllm-reopened-{name}", *command, reopening=True, REOPEN_S="0.3",
            **ahead.turn,
        )  # fmt: skip
        ahead.start(f"vllm reopened {name}", work)


def judge_reopened(ahead: Ahead, folder: Path) -> None:
    """CUPTI comes and leaves while vLLM loads, captures and decodes."""
    for name in VLLM_RUNS:
        for run in ahead.of(f"vllm reopened {name}"):
            reopened(run, 5)
            run.truths()


def judge(ahead: Ahead, folder: Path) -> None:
    if not installed():
        print("skip vllm: it is not installed", flush=True)
        return
    for mode in BOTH:
        for run in ahead.of(f"vllm both {mode}"):
            truths = run.truths()
            phases = one(f"vllm both {mode}", run, whole=False)
            if truths and phases:
                name = f"vllm {mode}, both tools in one process"
                agree(name, [phases], [truths[0]["generate"]])
    for name in VLLM_RUNS:
        ours = []
        for number in range(PROCESSES[name]):
            for run in ahead.of(f"vllm {name} {number}"):
                phases = one(f"vllm {name}", run, whole=number == 0)
                ours += [phases] if phases else []
        seen = [truth["generate"] for truth in ahead.of(f"vllm {name} seen")]
        if ours and seen:
            agree(f"vllm {name}", ours, seen)
    report(folder)


def one(name: str, run: Recorded, whole: bool) -> list[Launches]:
    """A recorded process against what it knows; its kernels by request."""
    truths = run.truths()
    if not truths or not run.processes or run.data is None:
        why = [m.reason for m in run.data.missing] if run.data else ""
        say(False, f"{name}: processes with kernels {len(run.processes)}: {why}")
        return []
    process = max(run.processes, key=lambda p: p.kernels)
    rows = run.rows(process)
    if whole:
        told_pids = ", ".join(f"{p.label} ({p.kernels:,} kernels)" for p in run.processes)
        print(f"       {name}: {truths[0]['vllm']}: {told_pids}", flush=True)
        vllm_steps(name, run, process, truths[0])
        say(
            matched_share(rows) == 1.0,
            f"{name}: kernels with their launching call {matched_share(rows):.4f}"
            f" of {process.kernels}",
        )
        clock(rows, name)
    return phases_of(run, rows, truths[0], "generate")


def vllm_steps(name: str, run: Recorded, process: RecordedProcess, truth: dict[str, Any]) -> None:
    """Steps of the opened recording against the tokens that each request got, and against the
    times at which vLLM's engine returned them."""
    assert run.data is not None
    data = run.data
    engine = next(e for e in data.engines if e.engine_id == process.engine_id)
    found = data.steps_found.get(engine.engine_id)
    print(f"       {name}: {found.source}: {found.words}" if found else "", flush=True)
    starts: list[int] = []
    ends: list[int] = []
    for one in data.rounds_of(engine.engine_id, "traced"):
        for i, decode in enumerate(counted(one.labels, one.steps)):
            if decode:
                starts.append(one.stamps_ns[i])
                ends.append(one.stamps_ns[i + 1])
    start, end = np.array(starts, np.int64), np.array(ends, np.int64)
    order = np.argsort(start)
    start, end = start[order], end[order]
    t0 = data.info.t0_ns
    rows = run.rows(process)
    counts, steps_ns, theirs_ns, a_step = [], [], [], []
    for (_, _, begin, last), returned in zip(truth["phases"], truth["returned"], strict=True):
        inside = (start >= begin - t0) & (start < last - t0)
        counts.append(int(inside.sum()))
        steps_ns += (end - start)[inside].tolist()
        theirs_ns += np.diff(returned)[1:-1].tolist()
        first = np.searchsorted(rows.kernels.start_ns, start[inside])
        a_step += (np.searchsorted(rows.kernels.start_ns, end[inside]) - first).tolist()
    expected = [phase[1] for phase in truth["phases"]]
    say(
        all(abs(a - b) <= 1 for a, b in zip(counts, expected, strict=True)),
        f"{name}: decode steps {counts}, of {expected} a request",
    )
    if not steps_ns or not theirs_ns:
        say(False, f"{name}: no step within a request")
        return
    ratio = float(np.median(steps_ns)) / float(np.median(theirs_ns))
    say(
        abs(ratio - 1) < 0.03,
        f"{name}: median step {np.median(steps_ns) / 1e6:.3f} ms, {ratio:.4f} of the time between"
        " two returns of vLLM's engine",
    )
    (most, times) = Counter(a_step).most_common(1)[0]
    say(
        times / len(a_step) > 0.9,
        f"{name}: kernels a step {most} in {100 * times / len(a_step):.1f} % of {len(a_step)} steps"
        f" ({min(a_step)} to {max(a_step)})",
    )


def report(folder: Path) -> None:
    """What a user reads."""
    llmprof = [sys.executable, "-m", "llmprof"]
    eager, graphs = (str(folder / f"vllm-{name}-0.sqlite") for name in ("eager", "graphs"))
    commands = [["--headless", "--from", eager], ["findings", eager], ["compare", eager, graphs]]
    for words in commands:
        code, out, said = bounded([*llmprof, *words], {})
        print(f"$ llmprof {' '.join(Path(w).name for w in words)}  (exit {code})", flush=True)
        print("\n".join((out or said).splitlines()[:90]), flush=True)
