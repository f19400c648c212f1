"""The end of a recording: what each process was, what was lost, what could not be measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmprof.plaintext import one_line
from llmprof.recording.binary import obstacle
from llmprof.recording.plan import RecordPlan
from llmprof.recording.spooled.spools import Recorded, Spools
from llmprof.recording.window import Window, steps_seen
from llmprof.records import LOST_RECORDS, GpuDevice, Missing, RunInfo
from llmprof.records.steps import WINDOW_CLOSED
from llmprof.runfile.foreign.recorded import recorded_info
from llmprof.runfile.writing.writer import RunFileWriter

Warn = Callable[[str, str], None]
"""(text, scope)."""
NO_TIMING = (
    "a recorded program has no untraced rounds: its rates are as traced"
    " (record --twice measures the slowdown)"
)
NO_CUDA = "no process of the program loaded the CUDA driver (libcuda.so.1)"
PERHAPS = (
    ", or it is linked statically, runs setuid or as another user, who may not write beside the run"
    " file: nothing could be recorded on a GPU"
)


def close(
    plan: RecordPlan,
    writer: RunFileWriter,
    spools: Spools,
    known: Sequence[GpuDevice],
    warn: Warn,
    cut: str,
) -> None:
    """Write engines, processes, GPUs and reasons.

    Args:
        known: GPUs that NVML showed.
        cut: why the recording ended before the program; empty where it did not.

    Raises:
        RunFileError: the run file cannot be written.
    """
    passed_s = (time.monotonic_ns() - writer.t0_ns) / 1e9
    writer.put_missing(_not_measured(plan, spools, cut, passed_s))
    if spools.devices_added:
        writer.put_gpu_devices([*known, *spools.devices_added])
    if not spools.engines:  # NVTX is all there is: on a CPU, or by --trace steps
        spools.adopt_marked()
    for recorded in spools.all:
        _put_process(writer, recorded, warn)


def fit_bandwidth(writer: RunFileWriter, say: Callable[[str], None]) -> None:
    """Fit samples to kernels once, by the steps that are found without being told, so that whoever
    opens the file need not.

    Raises:
        RunFileError: the run file cannot be read or written.
    """
    from llmprof.analysis.bandwidth.kept import VERSION, fitted
    from llmprof.analysis.view.opening import open_run
    from llmprof.runfile.reader import RunFileReader

    data = open_run(writer.path)
    with RunFileReader(writer.path) as reader:
        for engine in data.engines:
            found = fitted(reader, data, engine, say)
            if found is not None:
                writer.put_dram_fit(engine.engine_id, VERSION, found)


def summary(spools: Spools) -> list[str]:
    """A line an engine."""
    return [f"{r.engine.label}: {_counted(r)}" for r in spools.all if r.engine is not None]


def _counted(recorded: Recorded) -> str:
    """What of a process was recorded: a 0 would be said of what nobody looked at."""
    image = recorded.image
    words = [f"{image.kernels:,} kernels", f"{image.copies:,} copies"] if image.worked else []
    if image.calls:
        words.append(f"{image.calls:,} calls")
    return ", ".join([*words, f"{image.range_count:,} ranges"])


def _not_measured(plan: RecordPlan, spools: Spools, cut: str, passed_s: float) -> list[Missing]:
    rows = [] if plan.twice else [Missing("run", "timing pass", NO_TIMING)]
    if plan.level != "steps" and not any(r.image.worked for r in spools.all):
        rows.append(Missing("run", "kernels", _why_no_kernels(plan, spools, cut, passed_s)))
    return rows


def _why_no_kernels(plan: RecordPlan, spools: Spools, cut: str, passed_s: float) -> str:
    if cut:
        return f"the recording ended before anything of it was written: {cut}"
    errors = [e for r in spools.all for e in r.image.errors]
    if errors:
        return error_text(errors[0])
    if plan.after is not None and plan.after.steps is not None:
        seen = steps_seen(spools.steps_source)
        if seen < plan.after.steps:
            return (
                f"--after {plan.after.steps}steps: the program ended after {seen} NVTX ranges that"
                " say step, so the window never opened; give a time (--after 30s) where a program"
                " marks no steps"
            )
    was_open = any("library" in r.image.facts for r in spools.all)  # with the window CUPTI comes
    if plan.after is not None and (plan.after.seconds or 0) > passed_s and not was_open:
        return (
            f"--after {plan.after.seconds:g}s: the program ended after {passed_s:.1f} s, so the"
            " window never opened"
        )
    unwanted = sorted({number for r in spools.all for number in r.image.unwanted})
    if unwanted:
        where = ", ".join(map(str, unwanted))
        return f"all that the program ran was on GPU {where}, which --gpus leaves out"
    if any(r.image.loaded_cuda for r in spools.all):
        return "the program loaded CUDA but ran nothing on a GPU while it was recorded"
    why = obstacle(plan.command[0])
    return f"{NO_CUDA}: {why}" if why else NO_CUDA + PERHAPS


def _put_process(writer: RunFileWriter, recorded: Recorded, warn: Warn) -> None:
    image, engine = recorded.image, recorded.engine
    for error in image.errors:
        warn(error_text(error), image.name)
    if engine is None and not image.worked and not image.range_count:
        return  # a compile worker that only called cuInit
    label = engine.label if engine is not None else image.name
    for text in image.losses:
        warn(text, label)
    if image.losses and engine is not None:
        writer.put_missing([Missing(label, LOST_RECORDS, "; ".join(image.losses))])
    if recorded.tail.broken:
        warn(f"spool {recorded.tail.broken}", label)
    elif recorded.tail.torn:
        warn(f"{recorded.tail.torn} bytes of a torn frame were lost", label)
    if image.ranges.open:
        ranges = "range" if image.ranges.open == 1 else "ranges"
        warn(f"{image.ranges.open} NVTX {ranges} never ended: {image.ranges.open_words}", label)
    if engine is not None:
        engine.state = "finished"
        engine.info = recorded_info(sorted(image.devices))
        writer.put_engine(engine)
    writer.put_process(image.record(label))


def error_text(error: dict[str, object]) -> str:
    """An ERROR frame, whatever it holds, in one line."""
    what, advice = one_line(str(error.get("what", "?"))), one_line(str(error.get("advice", "")))
    code = error.get("code")
    text = f"{what} ({code})" if code else what
    return f"{one_line(text)}: {advice}" if advice else one_line(text)


def keep_window(writer: RunFileWriter | None, info: RunInfo, window: Window) -> None:
    """Times in which the window was closed and that something was recorded before and behind."""
    if writer is not None and window.closings:
        closed = [[begin - info.t0_ns, end - info.t0_ns] for begin, end in window.closings]
        writer.set_state(info.state, environment={**info.environment, WINDOW_CLOSED: closed})
