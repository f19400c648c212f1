"""From a run's records to the ``Snapshot`` of one TUI frame, live or replayed alike."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import or_
from pathlib import Path

from llmprof.analysis.timing.conditions import (
    gpu_indices,
    missing_reason,
    samples_while_decoding,
)
from llmprof.analysis.timing.stats import distribution
from llmprof.analysis.timing.steps import counted_latencies, step_latencies
from llmprof.analysis.view.frames.snapshot import NOT_YET, EngineView, GpuView, PairView, Snapshot
from llmprof.analysis.view.report import EngineReport, Report
from llmprof.plaintext import one_line, printable, shortened, told_apart
from llmprof.records import (
    EngineInfo,
    GpuSample,
    Maybe,
    PassName,
    RoundRecord,
    RunData,
    Unavailable,
)
from llmprof.records.throttle import throttle_names

HISTORY = 240
"""GPU samples a frame shows of each device."""
LABEL_LIMIT = 40


@dataclass(frozen=True)
class Activity:
    """What an engine does now; nothing of it is in the records yet."""

    phase: str
    share: float | None = None
    """0–1 of the phase; of all rounds of the pass while one runs."""
    pass_name: PassName = "timing"
    index: int = 0
    total: int = 0
    stamps_ns: array[int] = field(default_factory=lambda: array("q"))
    """Of the running round; empty between rounds."""


def build_snapshot(
    data: RunData,
    report: Report,
    now_ns: int,
    activities: Mapping[int, Activity],
    *,
    log: Sequence[str] = (),
    gpu_unavailable: str = "",
) -> Snapshot:
    """The frame's value.

    Args:
        report: of the finished rounds of ``data``; made anew only when one was added.
        now_ns: on the clock of ``data`` (``data.origin_ns`` is the start of the run).
        activities: by engine id; no entry: the engine waits, or is at its end.
        log: lines of what happened, oldest first.
        gpu_unavailable: why no GPU could be asked, if it is known already.
    """
    agreement = {(item.a, item.b): item for item in report.agreement}
    pairs = []
    for pair in report.pairs:
        prefix, share = None, None
        if found := agreement.get((pair.a, pair.b)):
            prefix = None if isinstance(found.common_prefix, Unavailable) else found.common_prefix
            share = None if isinstance(found.agreement, Unavailable) else found.agreement
        ratio = pair.tok_s_ratio
        if isinstance(ratio.value, Unavailable) and data.info.state == "running":
            continue
        pairs.append(
            PairView(
                shortened(pair.a, LABEL_LIMIT),
                shortened(pair.b, LABEL_LIMIT),
                ratio.value,
                ratio.low,
                ratio.high,
                pair.difference_seen,
                one_line(pair.verdict),
                prefix,
                share,
            )
        )
    labels = told_apart([e.label for e in report.engines], LABEL_LIMIT)
    return Snapshot(
        title=" vs ".join(labels) or "llmprof",
        state=data.info.state,
        message=one_line(data.info.message),
        workload=report.workload,
        elapsed_s=max(0, now_ns - _begin(data)) / 1e9,
        engines=tuple(_engine(data, e, activities.get(e.engine_id)) for e in report.engines),
        gpus=_gpus(data, gpu_unavailable),
        pairs=tuple(pairs),
        warnings=tuple(one_line(f"{w.scope}: {w.text}") for w in report.warnings),
        log=tuple(one_line(line) for line in log),
        file=one_line(data.shown_path),
        what=what_ran(data),
    )


def what_ran(data: RunData) -> str:
    """What all engines have in common: ``llama2-7b · 4.2–4.5 bits · H100 80GB``."""
    infos = [e.info for e in data.engines if e.info is not None]
    names = list(dict.fromkeys(i.model.rstrip("/").rpartition("/")[2] for i in infos if i.model))
    name = names[0] if len(names) == 1 else _begin_of(names)
    if len(names) > 1 and len(name) < 2:
        name = f"{len(names)} models"
    bits = sorted({round(i.bits_per_weight, 1) for i in infos if i.bits_per_weight})
    formats = {i.model_format for i in infos if i.model_format}
    parts = [one_line(name, 24)]
    if len(formats) == 1:
        parts.append(one_line(formats.pop(), 24))
    elif bits:
        ends = [f"{b:g}" for b in (bits[0], bits[-1])]
        parts.append(f"{'–'.join(dict.fromkeys(ends))} bits")
    used = {i.device.partition(":")[2] for i in infos if i.device.startswith("cuda")}
    gpus = [g.name for g in data.gpu_devices if str(g.index) in used]
    if gpus:
        parts.append(one_line(" ".join(gpus[0].removeprefix("NVIDIA ").split()[:2]), 24))
    return " · ".join(part for part in parts if part)


def _begin_of(names: Sequence[str]) -> str:
    """What all names begin with; empty without any."""
    same = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        same += 1
    return names[0][:same].rstrip("-_. ") if names else ""


def _begin(data: RunData) -> int:
    """Of the run; of a file that was opened, of its first round: the file's own zero is that of the
    profiler's session, or 1970."""
    starts = [r.start_ns for r in data.rounds] if data.info.source == "opened" else []
    return min(starts, default=data.origin_ns)


def _engine(data: RunData, engine: EngineReport, activity: Activity | None) -> EngineView:
    steps = engine.steps
    synchronous = engine.info is None or engine.info.synchronous
    current: tuple[int, ...] = ()
    if activity and synchronous:
        current = step_latencies(activity.stamps_ns)
    shown, round_label = _round_on_show(data, engine.engine_id, activity, current)
    itl = steps.itl_ms
    running_steps = 0
    if activity and activity.pass_name == "timing":
        running_steps = max(0, len(activity.stamps_ns) - 1)
        if isinstance(itl, Unavailable) and current:
            # Better than nothing until the first round is done.
            itl = distribution([step / 1e6 for step in current])
    phase, share = _phase(data, engine, activity)
    # A reason is final only when the engine had its rounds or is at its end.
    going = data.info.state == "running" and engine.state not in ("finished", "failed")

    def so_far(value: Maybe) -> Maybe:
        return NOT_YET if isinstance(value, Unavailable) and going and not steps.rounds else value

    def quantile(name: str) -> Maybe:
        return so_far(itl if isinstance(itl, Unavailable) else float(getattr(itl, name)))

    return EngineView(
        engine_id=engine.engine_id,
        label=shortened(engine.label, LABEL_LIMIT),
        detail=_detail(engine.name, engine.info),
        state=engine.state,
        phase=phase,
        progress=share,
        step_ms=tuple(step / 1e6 for step in shown),
        round_label=round_label,
        steps_done=sum(r.steps for r in steps.rounds) + running_steps,
        tok_s=so_far(steps.tok_s.value),
        tok_s_low=so_far(steps.tok_s.low),
        tok_s_high=so_far(steps.tok_s.high),
        ttft_ms=so_far(steps.ttft_ms.value),
        prefill_tok_s=so_far(steps.prefill_tok_s.value),
        itl_p50_ms=quantile("p50"),
        itl_p95_ms=quantile("p95"),
        itl_p99_ms=quantile("p99"),
        itl_max_ms=quantile("max"),
        bandwidth_gb_s=so_far(engine.bandwidth.modelled_gb_s),
        roofline_share=so_far(engine.bandwidth.modelled_share),
        measured_gb_s=so_far(engine.bandwidth.measured_gb_s),
        joule_per_token=so_far(steps.joule_per_token),
        slowdown=NOT_YET if going and not steps.slowdown.traced_steps else steps.slowdown.ratio,
        text="" if isinstance(engine.text, Unavailable) else printable(engine.text),
        failure=one_line(engine.failure.message) if engine.failure else "",
    )


def _round_on_show(
    data: RunData, engine_id: int, activity: Activity | None, current: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """Steps and name of the running round once it has a step, else of the last one.

    Of a run that is over the last timing round: its steps are the ones that count.
    """
    if activity and current:
        return current, _round_label(activity.pass_name, activity.index, activity.total)
    rounds = list(reversed(data.rounds))
    if data.info.state != "running":
        rounds.sort(key=lambda record: record.pass_name != "timing")
    for record in rounds:
        if record.engine_id == engine_id and record.steps and record.synchronous:
            label = _round_label(record.pass_name, record.index, _total(data, record))
            return counted_latencies(record), label
    return (), ""


def _round_label(pass_name: PassName, index: int, total: int) -> str:
    name = "round" if pass_name == "timing" else f"{pass_name} round"
    return f"{name} {index + 1}/{total}" if total else f"{name} {index + 1}"


def _total(data: RunData, record: RoundRecord) -> int:
    """Rounds of that pass: as planned for the timing pass, else as many as there are."""
    planned = data.info.workload.get("rounds") if record.pass_name == "timing" else None
    if record.pass_name == "timing" and not planned and data.info.state == "running":
        return 0
    return planned or len(data.rounds_of(record.engine_id, record.pass_name))


def _phase(
    data: RunData, engine: EngineReport, activity: Activity | None
) -> tuple[str, float | None]:
    if engine.state == "failed":
        return "failed", None
    if engine.state == "finished":
        return "done", 1.0
    if data.info.state != "running":
        return "stopped", None
    if activity is None:
        return "waiting", None
    return one_line(activity.phase, LABEL_LIMIT), activity.share


def _detail(name: str, info: EngineInfo | None) -> str:
    """``torch 2.13 · gguf Q4_1 · fp32 · cpu``."""
    if info is None:
        return one_line(name, LABEL_LIMIT)
    version = next(iter(info.versions.values()), "")
    short = ".".join(version.split(".")[:2])
    model = info.model_format or Path(info.model).name
    parts = [f"{name} {short}".strip(), model, info.dtype, info.device]
    return one_line(" · ".join(part for part in parts if part))


def _gpus(data: RunData, unavailable: str) -> tuple[GpuView, ...]:
    if not data.gpu_devices:
        reason = unavailable or missing_reason(data, ("run",), "nvml") or "no GPU was recorded"
        return (GpuView(None, None, unavailable=one_line(reason)),)
    views = []
    over = data.info.state != "running"
    for device in data.gpu_devices:
        newest = (s for s in reversed(data.gpu_samples) if s.device == device.index)
        history = tuple(islice(newest, HISTORY))[::-1]
        latest: GpuSample | None = history[-1] if history else None
        # What the GPU did while it was timed: at the end of a run it idles, or was traced.
        pass_name, decoding = _decoding(data, device.index) if over else ("timing", ())
        why = "no NVML sample fell into a decode step" if over and not decoding else ""
        seen = [s.throttle_mask for _, rows in decoding for s in rows]
        missing = tuple(
            (one_line(row.name.removeprefix("nvml.")), one_line(row.reason))
            for row in data.missing
            if row.scope == f"gpu{device.index}"
        )
        mask = (latest.throttle_mask or 0) if latest else 0
        if seen:
            mask = reduce(or_, (m or 0 for m in seen))
        throttle = throttle_names(mask)
        views.append(
            GpuView(
                device, latest, history, decoding, throttle, missing=missing,
                pass_name=pass_name, why_not_decoding=why,
            )
        )  # fmt: skip
    return tuple(views)


def _decoding(
    data: RunData, device: int
) -> tuple[PassName, tuple[tuple[str, tuple[GpuSample, ...]], ...]]:
    """Samples of each engine's timing rounds; where none has any, of the traced ones."""
    passes: tuple[PassName, ...] = ("timing", "traced")
    for name in passes:
        found = []
        for engine in data.engines:
            rounds = data.rounds_of(engine.engine_id, name)
            if rounds and device in gpu_indices(engine):
                rows = samples_while_decoding(data.gpu_samples, rounds, device)
                if rows:
                    found.append((engine.label, tuple(rows[-HISTORY:])))
        if found:
            return name, tuple(found)
    return "timing", ()
