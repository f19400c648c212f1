"""The GPU waits: for launches, for the host, because a step fell off its graph."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from llmprof.analysis.findings.subject import LONGEST_COMMAND, Confidence, Finding, Subject
from llmprof.analysis.host.causes import GapCauses
from llmprof.analysis.host.launches import Cause as IdleCause
from llmprof.analysis.host.replays import ReplayWaits, replays
from llmprof.records import Unavailable

MANY_LAUNCHES = 50
"""A step: a graph is one launch, or a few."""
LEAST_SAMPLES = 30
HOST: tuple[IdleCause, ...] = ("host", "gil", "wait", "allocator", "graph update")


def idle_findings(subject: Subject) -> Iterator[Finding]:
    """All that idle time says."""
    yield from launch_bound(subject)
    yield from late_replay(subject)
    yield from sync(subject)
    yield from host_work(subject)
    yield from unexplained(subject)
    yield from off_graph(subject)


def launch_bound(subject: Subject) -> Iterator[Finding]:
    """Idle time in which the GPU waited for the next launch, while the host launched one by one."""
    kernels, idle = subject.kernels, subject.idle_ms
    if isinstance(kernels, Unavailable) or idle is None:
        return
    launches = kernels.launches_per_step
    causes = _explained(subject)
    # Few launches of a step without a graph are too many where the GPU is known to wait for them.
    least = 1 if causes is not None and not _replays(subject) else MANY_LAUNCHES
    if isinstance(launches, Unavailable) or launches < least:
        return
    if causes is not None:
        won = _ms(causes, ("launch",)) * subject.idle_scale
        confidence, why = _confidence(subject, causes)
        how = "idle time whose cause is the next launch"
    else:
        # Nobody sampled the host: idle time between kernels of a step launched one by one.
        if isinstance(subject.gaps, Unavailable) or not subject.gaps.ms_per_step:
            return
        won = idle * subject.gaps.kind_ms_per_step["between"] / subject.gaps.ms_per_step
        eager = any(g.kind == "eager" and g.counted for g in kernels.groups)
        confidence = "medium" if eager else "low"
        why = "idle time between kernels; what the host did meanwhile was not recorded"
        how = "at most: all idle time between kernels"
    if not subject.worth(won):
        return
    graph = _graph_hint(subject)
    yield Finding(
        cause="launch-bound",
        engine=subject.label,
        says=f"launch-bound: {launches:.0f} launches a step, the GPU waits {won:.2f} ms for them;"
        f" {graph}",
        ms_per_token=won,
        share=subject.share(won),
        how=f"{how}; {subject.idle_words}",
        evidence=(
            f"idle {idle:.2f} of {subject.step_ms or 0:.2f} ms a step",
            *_verdict(subject),
        ),
        confidence=confidence,
        why=why,
        next=_launch_next(subject),
        gap=True,
    )


def late_replay(subject: Subject) -> Iterator[Finding]:
    """Idle time of a step that is a CUDA graph and few launches, and the host late with them."""
    kernels, causes, idle = subject.kernels, _explained(subject), subject.idle_ms
    if isinstance(kernels, Unavailable) or causes is None or idle is None:
        return
    launches = kernels.launches_per_step
    if isinstance(launches, Unavailable) or launches >= MANY_LAUNCHES or not _replays(subject):
        return
    won = _ms(causes, ("launch",)) * subject.idle_scale
    if not subject.worth(won):
        return
    confidence, why = _confidence(subject, causes)
    waits, scale = causes.replay, subject.idle_scale
    says, evidence = f"the GPU waits {won:.2f} ms a step for launches of the host", []
    if waits is not None:
        says += f", {waits.call_ms * scale:.2f} of them while it launches the CUDA graph"
        evidence += [_around(waits, scale), _spare(waits)]
    evidence.append(f"idle {idle:.2f} of {subject.step_ms or 0:.2f} ms a step")
    if waits is None:
        evidence += _verdict(subject)
    yield Finding(
        cause="late replay",
        engine=subject.label,
        says=f"{says}; the step is a graph already: {_replay_advice(waits, won)}",
        ms_per_token=won,
        share=subject.share(won),
        how=f"at most: the GPU had its next graph whenever it ends one; {subject.idle_words}",
        evidence=tuple(evidence),
        confidence=confidence,
        why=why,
        next=_host_next(subject),
        gap=True,
    )


def _around(waits: ReplayWaits, scale: float) -> str:
    """Where the host was late, largest first; what it launches there."""
    places = {
        f"the graph's own launch (a call of {waits.call_us:.0f} µs)": waits.call_ms,
        "launches before the graph": waits.before_ms,
        "launches between graphs": waits.between_ms,
        "launches behind the graph": waits.behind_ms,
    }
    found = sorted(places.items(), key=lambda item: -item[1])
    parts = [f"{ms * scale:.2f} ms for {name}" for name, ms in found if ms * scale >= 0.005]
    around = f"; {waits.singles} kernels a step are launched beside it" if waits.singles else ""
    return f"{', '.join(parts)}{around}"


def _spare(waits: ReplayWaits) -> str:
    """What the host could do earlier: while it waits in CUDA calls, the GPU works."""
    return (
        f"the host waits {waits.sync_ms:.2f} ms a step for the GPU in CUDA calls: running ahead of"
        " it wins no more than that, unless it waits outside of CUDA too"
    )


def _replay_advice(waits: ReplayWaits | None, won: float) -> str:
    if waits is None:
        return "launch the next one while it runs, or less around it"
    if waits.sync_ms >= 0.5 * won:
        return "prepare the next step while it runs (asynchronous scheduling)"
    if waits.singles:
        return "less host work a step, or more of its launches in the graph"
    return "less host work a step"


def sync(subject: Subject) -> Iterator[Finding]:
    """Idle time after the host waited for the device."""
    yield from _by_cause(
        subject,
        ("sync",),
        "sync",
        "the host waits for the GPU inside the step and goes on too late",
        f"llmprof open {subject.name}",
    )


def host_work(subject: Subject) -> Iterator[Finding]:
    """Idle time in which the host computed, slept, allocated."""
    yield from _by_cause(
        subject,
        HOST,
        "host work",
        "the GPU waits while the host works",
        _host_next(subject),
    )


def _by_cause(
    subject: Subject, wanted: tuple[IdleCause, ...], cause: str, words: str, command: str
) -> Iterator[Finding]:
    causes = _explained(subject)
    if causes is None or subject.idle_ms is None:
        return
    won = _ms(causes, wanted) * subject.idle_scale
    if not subject.worth(won):
        return
    confidence, why = _confidence(subject, causes)
    frame = max(causes.frames, key=lambda f: f.self_ms_per_step, default=None)
    where = _where(subject)
    yield Finding(
        cause="sync" if cause == "sync" else "host work",
        engine=subject.label,
        says=f"{words}: {won:.2f} ms a step{where}",
        ms_per_token=won,
        share=subject.share(won),
        how=f"at most: the host could do it while the GPU works; {subject.idle_words}",
        evidence=(
            causes.verdict,
            *((f"most seen on the host: {frame.label}",) if frame is not None else ()),
        ),
        confidence=confidence,
        why=why,
        next=command,
        gap=True,
    )


def unexplained(subject: Subject) -> Iterator[Finding]:
    """Idle time of a step with few launches whose cause nobody recorded."""
    kernels, causes, idle = subject.kernels, subject.causes, subject.idle_ms
    if isinstance(kernels, Unavailable) or isinstance(causes, Unavailable) or idle is None:
        return
    launches = kernels.launches_per_step
    if not isinstance(launches, Unavailable) and launches >= MANY_LAUNCHES:
        return  # launch-bound, as it seems
    if _explained(subject) is not None:
        return
    won = _ms(causes, ("unknown",)) * subject.idle_scale
    if not subject.worth(won):
        return
    yield Finding(
        cause="idle",
        engine=subject.label,
        says=f"the GPU waits {won:.2f} ms a step{_where(subject)}; why was not recorded",
        ms_per_token=won,
        share=subject.share(won),
        how=f"at most; {subject.idle_words}",
        evidence=(f"idle {idle:.2f} of {subject.step_ms or 0:.2f} ms a step", *_verdict(subject)),
        confidence="low",
        why=causes.basis,
        next=subject.again("--trace", "full"),
        gap=True,
    )


def off_graph(subject: Subject) -> Iterator[Finding]:
    """Steps that ran eagerly, or in pieces, where most replay a CUDA graph."""
    kernels = subject.kernels
    if isinstance(kernels, Unavailable) or isinstance(kernels.steps, Unavailable):
        return
    counted = [step for step in kernels.steps if step.counted]
    graph = sorted(s.wall_ns for s in counted if s.kind == "graph")
    fallen = [s for s in counted if s.kind in ("eager", "piecewise")]
    if not fallen or len(graph) * 2 <= len(counted):
        return
    usual = graph[len(graph) // 2]
    won = sum(max(0, s.wall_ns - usual) for s in fallen) / len(counted) / 1e6
    if not won:
        return
    worst = max(fallen, key=lambda s: s.wall_ns)
    yield Finding(
        cause="fell off the graph",
        engine=subject.label,
        says=f"{len(fallen)} of {len(counted)} steps fell off the CUDA graph and took"
        f" {worst.wall_ns / 1e6:.2f} ms at the longest, {usual / 1e6:.2f} ms with it",
        ms_per_token=won,
        share=subject.share(won),
        how="their time beyond the median step with a graph, over all steps; as traced",
        evidence=(
            f"step {worst.step}: {worst.launches} launches, {worst.kernels} kernels, {worst.kind}",
        ),
        confidence="high" if len(fallen) > 1 else "medium",
        why="kind of every traced step by its launches",
        next=f"llmprof open {subject.name}",
        step=worst.step,
    )


def _ms(causes: GapCauses, wanted: tuple[IdleCause, ...]) -> float:
    return sum(c.ms_per_step for c in causes.causes if c.cause in wanted)


def _explained(subject: Subject) -> GapCauses | None:
    """``None`` where less than half of the idle time has a cause."""
    causes = subject.causes
    if isinstance(causes, Unavailable):
        return None
    unknown = sum(c.share for c in causes.causes if c.cause == "unknown")
    return None if unknown > 0.5 else causes


def _confidence(subject: Subject, causes: GapCauses) -> tuple[Confidence, str]:
    sampled = causes.basis.startswith("sampled")
    if sampled and causes.samples < LEAST_SAMPLES:
        return "low", f"{causes.samples} samples of the host in idle time"
    if subject.idle_scale < 0.8:
        return "medium", "traced idle time, scaled to the untraced step"
    if not subject.timed:
        return "medium", "as traced: there is no untraced step to compare with"
    return "high", f"{causes.samples} samples of the host" if sampled else "every API call"


def _verdict(subject: Subject) -> tuple[str, ...]:
    causes = subject.causes
    if isinstance(causes, Unavailable):
        return ()
    if _explained(subject) is None and not isinstance(subject.gaps, Unavailable):
        places = subject.gaps.places[:1]
        return tuple(
            f"widest place: {p.after or 'start of the step'} to {p.before or 'its end'},"
            f" {p.ms_per_step:.2f} ms a step"
            for p in places
        )
    return (causes.verdict,)


def _where(subject: Subject) -> str:
    """At the borders of the steps, or inside."""
    gaps = subject.gaps
    if isinstance(gaps, Unavailable) or not gaps.ms_per_step:
        return ""
    inside = gaps.kind_ms_per_step["between"] / gaps.ms_per_step
    return ", mostly between steps" if inside < 0.5 else ", mostly inside the step"


def _replays(subject: Subject) -> bool:
    """As far as the trace tells: do most steps replay a CUDA graph, whole or in pieces?"""
    return not isinstance(subject.round, Unavailable) and replays(subject.round)


def _graph_hint(subject: Subject) -> str:
    info = subject.info
    if (info is not None and info.cuda_graph) or _replays(subject):
        return "its CUDA graphs hold a part of the step only"
    return "a CUDA graph would be one"


def _host_next(subject: Subject) -> str:
    """The stacks, or how to have some."""
    causes = subject.causes
    if not isinstance(causes, Unavailable) and causes.samples:
        return f"llmprof export {subject.name} --to speedscope -o host.json"
    if subject.program:
        text = f"llmprof record --host -- {shlex.join(subject.program)}"
        return text if len(text) <= LONGEST_COMMAND else "llmprof record --host -- …"
    return f"llmprof open {subject.name}"


def _launch_next(subject: Subject) -> str:
    info = subject.info
    if subject.command and info is not None and not info.cuda_graph:
        if subject.engine == "torch":
            return "llmprof --engine torch --engine torch:cuda_graph=1"
        if subject.engine == "transformers":
            static = "transformers:cache=static,compile=reduce-overhead"
            return f"llmprof --engine transformers --engine {static}"
    return f"llmprof open {subject.name}"
