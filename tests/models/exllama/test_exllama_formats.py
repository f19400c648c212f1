"""Packed weights decode, by an independent slow decoder, to what was meant."""

from __future__ import annotations

import exllama_reference as reference
import numpy as np
import pytest

from llmprof.models import gptq
from llmprof.models.exllama import exl2, exl3
from llmprof.models.random_values import RandomSource
from llmprof.models.safetensors.header import read_tensor_table
from llmprof.models.safetensors.writer import PlannedTensor, write_safetensors


def written(tmp_path, tensors: list[PlannedTensor]) -> dict[str, np.ndarray]:
    path = tmp_path / "t.safetensors"
    write_safetensors(path, tensors, lambda done: None)
    assert set(read_tensor_table(path)) == {tensor.name for tensor in tensors}
    return reference.read_file(path)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gptq_rounds_to_the_nearest_level(group_size: int) -> None:
    weight = np.random.default_rng(1).normal(0, 0.1, (24, 256)).astype(np.float32)
    weight[0] = np.abs(weight[0])  # columns that do not cross zero
    weight[1] = -np.abs(weight[1])
    weight[2] = 0
    weight[3, 0] = 40.0  # an outlier
    packed = gptq.round_to_nearest(weight, group_size)
    tensors = {
        "w.qweight": packed.qweight,
        "w.qzeros": packed.qzeros,
        "w.scales": packed.scales,
    }
    slow = reference.gptq_weight(tensors, "w").T
    np.testing.assert_allclose(gptq.dequantise(packed), slow, rtol=1e-6)
    scale_of = np.repeat(packed.scales.astype(float), group_size, axis=0).T
    # Half a level, and the fp16 rounding of the scale over at most 15 levels.
    assert (np.abs(slow - weight) <= scale_of * (0.5 + 15 * 2**-11)).all()
    assert not slow[2].any()
    assert packed.qzeros.dtype == packed.qweight.dtype == np.int32


def test_random_gptq_has_the_planned_gain(tmp_path) -> None:
    source = RandomSource(3)
    tensors = written(tmp_path, gptq.random_tensors("w", 512, 64, 0.5, 128, source))
    weight = reference.gptq_weight(tensors, "w")
    assert abs(weight.mean()) < 0.05 * weight.std()
    assert weight.std() * np.sqrt(512) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8, None])
def test_random_exl2_has_the_planned_gain(tmp_path, bits: int | None) -> None:
    k = 1056  # a short last group
    tensors = written(tmp_path, exl2.random_tensors("w", k, 32, 1.0, bits, RandomSource(5), "x"))
    weight = reference.exl2_weight(tensors, "w")
    assert weight.shape == (k, 32)
    assert np.sqrt((weight**2).mean() * k) == pytest.approx(1.0, rel=0.1)
    assert abs(weight.mean()) < 5 * weight.std() / np.sqrt(weight.size)
    assert sorted(tensors["w.q_invperm"]) == list(range(k))
    groups = exl2.groups_of(k, bits)
    assert tensors["w.q_weight"].shape[0] == sum(b * rows // 32 for b, rows in groups)
    if bits is None:
        assert {b for b, _ in groups} == {5, 4, 3}


def test_mixed_exl2_averages_four_bits_widest_first() -> None:
    groups = exl2.groups_of(4096, None)
    assert sum(bits * rows for bits, rows in groups) / 4096 == 4.0
    assert [bits for bits, _ in groups] == sorted((bits for bits, _ in groups), reverse=True)


@pytest.mark.parametrize("bits", [1, 3, 4, 6, 8])
def test_random_exl3_has_the_planned_gain(tmp_path, bits: int) -> None:
    tensors = written(tmp_path, exl3.random_tensors("w", 256, 160, 1.0, bits, RandomSource(7)))
    assert tensors["w.trellis"].shape == (16, 16, 16 * bits)
    weight = reference.exl3_weight(tensors, "w")
    used = weight[:, :160]
    assert np.sqrt((used**2).mean() * 256) == pytest.approx(1.0, rel=0.1)
    assert abs(used.mean()) < 0.05 * used.std()
    assert not weight[:, 160:].any()  # padding is silent


def test_the_mul1_codebook_is_standard_normal_like() -> None:
    values = np.array([reference.mul1(state) for state in range(0, 65536, 7)])
    assert values.std() == pytest.approx(1.0, rel=0.02)
    assert abs(values.mean()) < 0.02
    assert 3 < values.max() < 4


def test_a_shared_input_shares_its_permutation() -> None:
    source = RandomSource(1)
    list(source.words(1024))
    again = RandomSource(1)
    np.testing.assert_array_equal(source.permutation("a", 64), again.permutation("a", 64))
    assert (source.permutation("a", 64) != source.permutation("b", 64)).any()
