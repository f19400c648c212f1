"""The fit on a recording of an H100: Llama-2-7B in fp16, whose matrices have a known size.

The recording was made after the fit's rules had been fixed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmprof.analysis.bandwidth.fit.design import Activity
from llmprof.analysis.bandwidth.fit.grouping import Grouping, grouped
from llmprof.analysis.bandwidth.fit.kernel_fit import KernelFit, Samples, fit
from llmprof.records import Unavailable

FIXTURE = Path(__file__).parents[2] / "fixtures" / "h100_strobe.npz"
PRODUCTS = {
    # name, grid, µs at the least -> projection
    "qkv": ("nvjet", (4, 30, 1), 30, "self_attn.qkv_proj"),
    "gate+up": ("nvjet", (4, 22, 1), 60, "mlp.gate_up_proj"),
    "down": ("nvjet", (2, 64, 1), 25, "mlp.down_proj"),
    "o": ("nvjet", (2, 64, 1), 10, "self_attn.o_proj"),
    "lm_head": ("nvjet", (2, 63, 1), 80, "lm_head"),
}


class Recording:
    def __init__(self) -> None:
        with np.load(FIXTURE) as file:
            table = {name: file[name] for name in file.files}
        self.about: dict[str, Any] = json.loads(table["about"].tobytes())
        start = np.cumsum(table["first"].astype(np.int64))
        self.start, self.end = start, start + table["length"]
        self.key = table["key"].astype(np.int64)
        first = np.cumsum(table["sample_first"].astype(np.int64))
        self.samples = Samples(
            first, first + table["sample_length"], table["dram_pct"].astype(np.float64),
            table["round"].astype(np.int64), np.empty((len(first), 0)),
        )  # fmt: skip
        self.groups: Grouping = grouped(self.key, self.start, self.end)

    def fit(self, samples: Samples) -> KernelFit | Unavailable:
        activity = Activity(self.start, self.end, self.groups.group, len(self.groups.base))
        return fit(activity, samples, self.groups.parent)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording()


@pytest.fixture(scope="module")
def found(recording: Recording) -> KernelFit:
    fitted = recording.fit(recording.samples)
    assert isinstance(fitted, KernelFit), fitted
    return fitted


@pytest.mark.parametrize("product", PRODUCTS)
def test_bytes_of_a_product_are_its_weights(
    recording: Recording, found: KernelFit, product: str
) -> None:
    name, grid, least_us, projection = PRODUCTS[product]
    base: dict[int, int] = {}
    for number, joined in enumerate(found.group.tolist()):
        base.setdefault(joined, int(recording.groups.base[number]))
    shortest: list[tuple[float, int]] = []
    for at, unit in enumerate(found.units):
        key = base[unit.groups[0]]
        shape = recording.about["shapes"][key]
        median = found.median_ns[unit.groups[0]]
        named = name in recording.about["names"][key] and shape and tuple(shape[0]) == grid
        if named and median >= least_us * 1000:
            shortest.append((median, at))
    median, at = min(shortest)
    unit = found.units[at]
    assert len(unit.groups) == 1
    assert unit.dram_pct is not None
    assert unit.low_pct is not None
    assert unit.high_pct is not None
    mb = recording.about["peak_gb_s"] / 100 * median / 1e6
    weights = recording.about["projections"][projection][2] / 1e6
    assert unit.dram_pct * mb == pytest.approx(weights, rel=0.015)
    assert unit.low_pct * mb <= weights <= unit.high_pct * mb
    # They read from begin to end, but for the last microseconds.
    profile = np.array(unit.profile_pct)
    assert len(profile) >= 6
    assert profile[1 : len(profile) * 2 // 3].min() > 70
    assert profile[-1] < 20


def test_the_sum_is_what_was_sampled(found: KernelFit) -> None:
    assert found.fitted_pct == pytest.approx(found.sampled_pct, rel=0.001)
    assert found.r2 > 0.999
    assert found.offset_ns == 0
    assert found.idle_pct < 0.5


def test_a_clock_that_was_wrong_is_brought_right_or_refused(recording: Recording) -> None:
    s, mine = recording.samples, recording.samples.round == 0
    start, end = s.start_ns[mine] + 1_200_000, s.end_ns[mine] + 1_200_000
    late = Samples(start, end, s.dram_pct[mine], s.round[mine], s.others[mine])
    found = recording.fit(late)
    if isinstance(found, KernelFit):
        assert abs(found.offset_ns + 1_200_000) < 12_000
    else:
        assert "clock was wrong" in found.reason
