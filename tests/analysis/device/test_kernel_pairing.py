"""Kernels of two traces are paired by name, then by family; every nanosecond is in one row."""

from __future__ import annotations

from pathlib import Path

import kineto_factory as kineto
import pytest

from llmprof.analysis.device.pairing import Pairing, family, pair_kernels
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.text.pairing_table import render
from llmprof.records import Unavailable
from llmprof.traces.opened import readable


def report(path: Path, names: dict[str, float], steps: int = 4, ranges: bool = True):
    """The kernels of a trace in which each step runs each name once, for so many µs."""
    events = []
    for n in range(steps):
        begin = kineto.BASE_US + 1000.0 * n
        if ranges:
            events.append(kineto.event("user_annotation", f"decode {n}", begin, 900.0, 7, 7))
        for i, (name, us) in enumerate(names.items()):
            number = 100 * n + i + 1
            events.append(kineto.event("cuda_runtime", "cudaLaunchKernel", begin + 10 + i, 0.5, 7,
                                       7, correlation=number))  # fmt: skip
            events.append(kineto.event("kernel", name, begin + 20 + 80 * i, us, 0, 7, device=0,
                                       stream=7, correlation=number))  # fmt: skip
    read = readable(kineto.write(path, kineto.document(events)))
    return RunTrace(read, open_run(read)).engines[0].kernels


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NVIDIA = {
    "nvjet_hsh_64x8_64x16_4x1_v_bz_splitK_TNT": 20.0,
    "void flash_fwd_kernel<P>(P)": 10.0,
    "my_own_thing": 3.0,
    "only_here": 1.5,
}
AMD = {
    "Cijk_Alik_Bljk_BBS_BH_MT32x32x256": 30.0,
    "Cijk_Alik_Bljk_BBS_BH_MT256x32x64": 5.0,
    "attn_fwd": 12.5,
    "my_own_thing": 2.0,
}


def test_names_pair_first_then_families_within_a_category(tmp_path: Path) -> None:
    a, b = report(tmp_path / "a.json", NVIDIA), report(tmp_path / "b.json", AMD)
    found = pair_kernels(a, b)
    assert isinstance(found, Pairing)
    assert found.per_step
    rows = {row.label: row for row in found.rows}
    assert rows["my_own_thing"].how == "name"
    assert (rows["my_own_thing"].a_ns, rows["my_own_thing"].b_ns) == (3000, 2000)
    product = rows["product"]
    assert (product.how, product.a_ns, product.b_ns) == ("family", 20_000, 35_000)
    assert (len(product.a_names), product.b_count) == (1, 2)
    assert rows["prefill"].delta_ns == 2500
    assert rows["only_here"].how == "only A"
    assert (found.a_ns, found.b_ns) == (34_500, 49_500)
    assert sum(r.delta_ns for r in found.rows) == found.b_ns - found.a_ns
    assert found.rows[0].label == "product"  # the largest change
    assert (found.a_elsewhere_ns, found.b_elsewhere_ns) == (0, 0)
    text = "\n".join(render(found))
    assert "Kernel time ms a step: A 0.035, B 0.050" in text or "A 0.034, B 0.049" in text


def test_without_steps_everything_is_compared_and_that_is_said(tmp_path: Path) -> None:
    a = report(tmp_path / "a.json", NVIDIA, ranges=False)
    b = report(tmp_path / "b.json", AMD)
    found = pair_kernels(a, b)
    assert isinstance(found, Pairing)
    assert not found.per_step
    assert found.why_not == "no decode steps are known of A"
    assert (found.a_ns, found.b_ns) == (4 * 34_500, 4 * 49_500)
    assert "everything that was traced is compared" in "\n".join(render(found))


def test_work_that_was_launched_before_the_steps_is_told_apart(tmp_path: Path) -> None:
    """Kernels of an earlier step still run: busy time of this one, but none of its kernels."""
    events = kineto.steps(4)
    for n in range(4):
        values = {"device": 0, "stream": 9, "correlation": 90_000 + n}
        begin = kineto.BASE_US + 1000.0 * n + 500
        events.append(kineto.event("kernel", "flash_fwd_kernel", begin, 40.0, 0, 9, **values))
    # One across a border: work is then given to steps by launches, not by time.
    values = {"device": 0, "stream": 9, "correlation": 99_000}
    events.append(
        kineto.event("kernel", "my_own_thing", kineto.BASE_US + 990, 20.0, 0, 9, **values)
    )
    read = readable(kineto.write(tmp_path / "x.json", kineto.document(events)))
    report_ = RunTrace(read, open_run(read)).engines[0].kernels
    assert not isinstance(report_, Unavailable)
    found = pair_kernels(report_, report_)
    assert isinstance(found, Pairing)
    assert found.per_step
    assert found.a_ns == 3 * 10_500
    # 3 × 40 + 20 µs in four steps: on the device the last step ends with its own last kernel.
    assert found.a_elsewhere_ns == 35_000
    assert "launched outside of them" in "\n".join(render(found))


def test_nothing_to_pair_says_why() -> None:
    why = Unavailable("no kernels")
    assert pair_kernels(why, why) is why
    assert render(why) == []


@pytest.mark.parametrize(
    ("category", "name", "expected"),
    [
        ("attention", "paged_attention_ll4mi_QKV_mfma16_kernel", "decode"),
        ("attention", "paged_attention_ll4mi_reduce_kernel", "merge of parts"),
        ("communication", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "all-reduce"),
        ("communication", "ncclKernel_SendRecv_RING", "all-to-all"),
        ("norm", "_ZN5aiter24add_rmsnorm_quant_kernelI", "RMS norm"),
        ("MoE", "_topk_forward", "routing"),
        ("other", "anything", None),
    ],
)
def test_families(category: str, name: str, expected: str | None) -> None:
    assert family(category, name) == expected


def test_any_two_kinds_of_file_compare(llmprof, tmp_path: Path) -> None:
    """A trace against an export, and no ratio of tok/s where no rate is known."""
    from kineto_factory import document, steps, write

    a = write(tmp_path / "a.json", document(steps()))
    done = llmprof("export", str(a), "--to", "nsys")
    assert done.returncode == 0, done.stderr
    compared = llmprof("compare", str(a), str(tmp_path / "a.nsys.sqlite"))
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.startswith("no ratio of tok/s: python3 (A) and python3 (B) were")
    assert "100% of the time is paired" in compared.stdout
