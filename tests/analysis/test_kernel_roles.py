"""Roles of kernels by their order in a step: known layers, and everything that is not one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trace_factory import ADD, ATTENTION, GEMV, NORM, K, make_trace

from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram
from llmprof.analysis.device.attribution import attribute
from llmprof.analysis.device.kernels import prepare
from llmprof.analysis.device.roles import matrices, parse, roles_of
from llmprof.analysis.view.roles import role_pairs, role_rows
from llmprof.records import EngineInfo, Unavailable

P, A, N, E, R, S = "product", "attention", "norm", "elementwise", "reduce", "softmax"
PLAIN = {
    "self_attn.q_proj": [64, 64, 100], "self_attn.k_proj": [64, 64, 100],
    "self_attn.v_proj": [64, 64, 100], "self_attn.o_proj": [64, 64, 50],
    "mlp.gate_proj": [96, 64, 150], "mlp.up_proj": [96, 64, 150],
    "mlp.down_proj": [64, 96, 140], "lm_head": [1000, 64, 9000],
}  # fmt: skip
FUSED = ("qkv", "o", "gate/up", "down", "lm_head")


def roles(*kinds: str, expected: dict[str, int] | None = None) -> tuple[list[str], int]:
    """Every kernel of a kind has one name."""
    names = list(dict.fromkeys(kinds))
    return parse(names, [names.index(kind) for kind in kinds], expected or {})


def layers(count: int, qkv: int = 1, gate_up: int = 1) -> list[str]:
    kinds = ["embedding"]
    for _ in range(count):
        kinds += [N, *[P] * qkv, "RoPE", "KV write", A, P, N, *[P] * gate_up, E, P]
    return [*kinds, N, P, "sampling"]


@pytest.mark.parametrize(("qkv", "gate_up"), [(1, 1), (3, 2), (2, 1), (1, 2)])
def test_every_product_of_plain_layers_has_its_role(qkv: int, gate_up: int) -> None:
    found, depth = roles(*layers(3, qkv, gate_up))
    count = {role: found.count(role) for role in FUSED}
    assert count == {"qkv": 3 * qkv, "o": 3, "gate/up": 3 * gate_up, "down": 3, "lm_head": 1}
    assert (depth, found.count("activation"), found.count("unknown")) == (3, 3, 0)
    first = found.index("o")
    assert found[first : first + 3 + gate_up + 1] == [
        "o", N, *["gate/up"] * gate_up, "activation", "down"
    ]  # fmt: skip


def test_qk_norms_and_norms_behind_a_block_part_nothing_more() -> None:
    layer = [N, P, P, P, N, N, "RoPE", A, P, N, N, P, P, E, P, N]
    found, depth = roles(*layer, *layer, N, P)
    assert depth == 2
    assert found.count("qkv") == 6
    assert found.count("gate/up") == 4
    assert found[-1] == "lm_head"


def test_a_reduction_belongs_to_the_product_before_it() -> None:
    layer = [N, P, A, P, R, E, N, P, E, P, R, E]
    found, _ = roles(*layer, *layer, N, P)
    assert found[4] == "o"
    assert found[10] == "down"
    assert found[8] == "activation"
    assert found[5] == E  # the residual's sum is no activation


def test_attention_of_single_kernels_is_no_product_with_weights() -> None:
    layer = [N, P, P, P, "RoPE", "KV write", P, E, S, P, P, N, P, P, E, P]
    found, depth = roles(*layer, *layer, N, P)
    assert depth == 2
    assert found[6:10] == ["attention"] * 4
    assert (found[10], found.count("qkv")) == ("o", 6)


def test_a_product_of_another_name_in_front_is_unknown() -> None:
    kinds = ["product", "norm", "attention", "RoPE", "product"]
    layer = [1, 0, 0, 0, 2, 0, 1, 0, 0]
    first = [1, 4, *layer[1:]]
    found, _ = parse(kinds, [*first, *layer, 1, 0], {})
    assert found[1] == "unknown"
    assert found[2:5] == ["qkv"] * 3


@pytest.mark.parametrize(
    "layer",
    [
        [N, P, A, N, P, E, P],  # no product behind attention
        [P, A, P, P, P],  # no norm to part them, and no list of matrices
        [N, P, A, P, P, P, P, P, N, P, P],  # a parallel block with more
        [N, P, A, P, N, P, "MoE", "MoE"],  # experts
    ],
)
def test_what_is_no_plain_layer_stays_unknown(layer: list[str]) -> None:
    found, depth = roles(*layer, *layer, *layer, N, P)
    assert depth == 0
    assert not set(found) & {"o", "gate/up", "down", "lm_head"}
    assert "unknown" in found


def test_without_norms_the_engines_own_list_tells_them_apart() -> None:
    """Where norms are fused into products there is one group of them between attentions."""
    layer = [P, P, P, A, P, P, P, E, P]
    expected = {role: number for role, (number, _) in matrices(PLAIN).items()}
    found, depth = roles(*layer, *layer, P, expected=expected)
    assert depth == 2
    assert found[4:9] == ["o", "gate/up", "gate/up", "activation", "down"]
    assert found[-1] == "lm_head"
    # The list says that q, k and v are one matrix, there are three products: not this engine's.
    assert roles(*layer, *layer, P, expected={**expected, "qkv": 1})[1] == 0


def test_a_list_with_a_matrix_of_no_known_role_gives_no_bytes() -> None:
    assert matrices(PLAIN)["qkv"] == (3, 300)
    assert matrices({**PLAIN, "mlp.router": [8, 64, 10]}) == {}
    assert matrices({"blk.attn_q": [1, 1, 4], "attn_output": [1, 1, 5], "output": [1, 1, 6]}) == {
        "qkv": (1, 4), "o": (1, 5), "lm_head": (1, 6)
    }  # fmt: skip


LAYER = (
    K(0, 5, NORM), K(10, 30, GEMV), K(50, 20, ATTENTION), K(80, 10, GEMV), K(100, 5, NORM),
    K(110, 40, GEMV), K(160, 5, ADD), K(170, 25, GEMV),
)  # fmt: skip


def step(depth: int) -> tuple[K, ...]:
    kernels = [replace(k, at=k.at + n * 200) for n in range(depth) for k in LAYER]
    end = depth * 200
    head = K(end + 10, 50, "void nvjet_head(int)", grid=(9, 1, 1))
    return (*kernels, K(end, 5, NORM), head)


def made(depth: int = 3, steps: int = 4):
    trace = make_trace(steps=steps, kernels=step(depth), step_ns=1000, prefill=(K(0, 700, GEMV),))
    found = attribute(trace.rows, trace.record, 0)
    return prepare(trace.rows, trace.record, found, "exllamav2")


def test_roles_of_a_trace_add_up_to_its_kernels() -> None:
    traced = made()
    report = roles_of(traced, PLAIN)
    assert not isinstance(report, Unavailable)
    assert (report.steps, report.layers, report.orders, report.why_unknown) == (4, 3, 1, "")
    times = {role.role: role.ns_per_step for role in report.roles}
    assert times == {
        "qkv": 90, "o": 30, "gate/up": 120, "down": 75, "lm_head": 50, "attention": 60,
        "norm": 35, "activation": 15,
    }  # fmt: skip
    assert sum(times.values()) * 4 == int(traced.laid.busy_ns().sum())


def dram(**values: float) -> KernelBandwidth:
    """One kernel told by what ran before it, the head; no other value."""
    gb_s = [("norm", "rms_norm", values.get("after_norm")), ("x", "", values.get("head"))]
    kernels = [
        KernelDram(
            short_name="nvjet" if kind == "x" else "gemm_half_q_half_gptq", name="", others=(),
            after=after, category="GEMM/GEMV", grid=(9, 1, 1) if kind == "x" else (1, 1, 1),
            block=(128, 1, 1), launches_per_step=1, median_ns=1, share=0.1, dram_gb_s=value,
            low_gb_s=value, high_gb_s=value, of_ceiling=0.5, mb_per_launch=1, low_mb=1, high_mb=1,
            profile_gb_s=(), further_pct={}, note="",
        )
        for kind, after, value in gb_s
        if value is not None
    ]  # fmt: skip
    no = Unavailable("")
    return KernelBandwidth(1, 4, 9, 1, 1.0, 100.0, no, 1, 1, 0, 0, 0, None, 1, 0, {},
                           tuple(kernels), no)  # fmt: skip


def test_modelled_and_measured_bandwidth_of_roles() -> None:
    traced = made()
    report = roles_of(traced, PLAIN)
    info = EngineInfo(projections={k: list(v) for k, v in PLAIN.items()})
    rows = role_rows(report, info, Unavailable("no samples"))
    assert not isinstance(rows, Unavailable)
    by_role = {row.role: row for row in rows}
    assert by_role["qkv"].modelled_gb_s == pytest.approx(3 * 300 / 90)  # bytes a ns
    assert by_role["lm_head"].modelled_gb_s == pytest.approx(9000 / 50)
    assert by_role["attention"].modelled_gb_s == Unavailable("it does not multiply by weights")
    assert by_role["qkv"].measured_gb_s == Unavailable("no samples")
    block = report.roles[0].places[0].block
    fitted = dram(after_norm=7.0)
    fitted = replace(fitted, kernels=tuple(replace(k, block=block) for k in fitted.kernels))
    shared = role_rows(report, info, fitted)
    assert not isinstance(shared, Unavailable)
    by_role = {row.role: row for row in shared}
    # Behind a norm lie the first products of both blocks: one value, and it says so.
    assert by_role["qkv"].measured_gb_s == pytest.approx(7.0)
    assert by_role["qkv"].told_together == ("gate/up",)
    assert isinstance(by_role["o"].measured_gb_s, Unavailable)


def test_pairs_of_roles_and_what_only_one_has() -> None:
    rows = role_rows(roles_of(made(3), None), None, Unavailable("none"))
    other = role_rows(roles_of(made(2), None), None, Unavailable("none"))
    assert not isinstance(rows, Unavailable)
    pairs = role_pairs(rows, tuple(r for r in other if r.role != "lm_head"))
    assert not isinstance(pairs, Unavailable)
    by_role = {pair.role: pair for pair in pairs}
    assert by_role["o"].delta_ms == pytest.approx(-10e-6)
    assert by_role["lm_head"].b is None
    assert isinstance(role_pairs(rows, Unavailable("no steps")), Unavailable)
