"""One engine with planted faults, or none: what rules of findings look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import rundata_factory as made
from trace_factory import ADD, ATTENTION, GEMV, NORM, K, make_trace

from llmprof.analysis.bandwidth.roofline import Bandwidth
from llmprof.analysis.device.attribution import attribute
from llmprof.analysis.device.gaps import idle_gaps
from llmprof.analysis.device.kernels import kernel_report, prepare
from llmprof.analysis.device.roles import WEIGHTS, roles_of
from llmprof.analysis.findings.subject import Subject
from llmprof.analysis.host.causes import CauseTime, GapCauses, gap_causes
from llmprof.analysis.timing.steps import engine_steps
from llmprof.analysis.view.roles import role_rows
from llmprof.records import Unavailable

US = 1000
NO = Unavailable("not recorded")
LAYERS = 32
STEP_US = 3200
"""32 layers of 100 µs: 93 µs of kernels without a pause, and a graph's 7 µs."""


def layer(at: int) -> tuple[K, ...]:
    """A fused layer: norm, qkv, attention, o, norm, gate and up, down; 1 µs and less between."""
    parts = ((NORM, 2), (GEMV, 20), (ATTENTION, 8), (GEMV, 10), (NORM, 2), (GEMV, 30), (GEMV, 21))
    found, now = [], at * US
    for name, length in parts:
        found.append(K(now, length * US, name, graph=True))
        now += length * US
    return tuple(found)


HEALTHY = (
    *(k for n in range(LAYERS) for k in layer(n * 99)),
    K(3168 * US, 2 * US, NORM, graph=True),
    K(3170 * US, 20 * US, "void nvjet_head(int)", graph=True),
)


def eager(kernels: Sequence[K] = HEALTHY) -> tuple[K, ...]:
    """The same, every kernel launched by itself and 10 µs late."""
    return tuple(replace(k, at=k.at + n * 10 * US, graph=False) for n, k in enumerate(kernels))


def with_small_kernels(count: int = 3) -> tuple[K, ...]:
    """Three kernels of 2 µs behind each layer's last product."""
    found = []
    for n in range(LAYERS):
        at = n * (99 + 2 * count)
        found += layer(at)
        found += [K((at + 93 + 2 * i) * US, 2 * US, ADD, graph=True) for i in range(count)]
    end = LAYERS * (99 + 2 * count)
    return (*found, K(end * US, 2 * US, NORM, graph=True),
            K((end + 2) * US, 20 * US, "void nvjet_head(int)", graph=True))  # fmt: skip


def steps_ms(rounds: int = 8, depth: int = 64, step: float = 3.2) -> list[list[float]]:
    """Timing rounds with a little noise."""
    return [
        [step * (1 + 0.004 * (((r * 31 + n * 17) % 7) - 3)) for n in range(depth)]
        for r in range(rounds)
    ]


def subject(
    work: Sequence[K] = HEALTHY,
    table: Sequence[Sequence[float]] | None = None,
    *,
    step_us: int = STEP_US,
    steps: int = 8,
    gb_s: float = 2800.0,
    **changes: Any,
) -> Subject:
    """One engine.

    Args:
        table: ms of every step of every timing round.
        gb_s: that the products with weights reach; a copy reaches 3000.
    """
    trace = make_trace(steps=steps, kernels=tuple(work), step_ns=step_us * US,
                       prefill=(K(0, 50, GEMV),))  # fmt: skip
    found = attribute(trace.rows, trace.record, 0)
    traced = prepare(trace.rows, trace.record, found, "exllamav2")
    table = steps_ms(step=step_us / 1000) if table is None else table
    info = made.engine_info(device="cuda:0", cuda_graph=True)
    roles = roles_of(traced, None)
    products = 0.0
    if not isinstance(roles, Unavailable):
        products = sum(r.ns_per_step for r in roles.roles if r.role in WEIGHTS)
    info = replace(info, weight_bytes_per_step=int(gb_s * products))
    engine = made.engine(0, "mine", info=info)
    data = made.run_data([engine], [made.decode_round(0, n, row) for n, row in enumerate(table)])
    timed = sum(map(sum, table)) / sum(map(len, table)) * 1e6
    values: dict[str, Any] = {
        "label": "mine",
        "file": "run.sqlite",
        "engine": "mine",
        "command": ("llmprof", "--engine", "mine", "-o", "run.sqlite", "--trace=kernels"),
        "program": (),
        "info": info,
        "steps": engine_steps(data, engine),
        "timed_ns": timed,
        "conditions": NO,
        "cpu": NO,
        "max_sm_clock_mhz": 1980.0,
        "bandwidth": Bandwidth(NO, NO, NO, 3350.0, "NVML", NO, NO, 3000.0),
        "round": traced,
        "kernels": kernel_report(traced),
        "gaps": idle_gaps(traced.timeline),
        "causes": gap_causes(traced, trace.rows, trace.record, NO),
        "roles": role_rows(roles, info, NO),
        "dram": NO,
    }
    return Subject(**{**values, **changes})


def causes(samples: int = 200, **ms: float) -> GapCauses:
    """Idle time by cause, as samples of the host tell it."""
    total = sum(ms.values())
    parts = tuple(
        CauseTime(name.replace("_", " "), int(v * 8e6), v, v / total)  # type: ignore[arg-type]
        for name, v in sorted(ms.items(), key=lambda item: -item[1])
    )
    return GapCauses(int(total * 8e6), total, parts, samples, "sampled host stacks", (), (), "so")
