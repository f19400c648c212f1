"""Rules: shipped ones on real names, the user's before them, one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprof.analysis.device.categories import OTHER, categorise, load_rules, shipped_rules
from llmprof.errors import UsageError

AT = "void at::native::vectorized_elementwise_kernel<4, at::native::"
REAL = [
    ("mlc", "fused_fused_dequantize3_NT_matmul12_kernel", "quantised GEMV/GEMM"),
    ("mlc", "NT_matmul2_kernel", "GEMM/GEMV"),
    ("mlc", "batch_decode_paged_kv_kernel", "attention"),
    ("mlc", "tir_kv_cache_transpose_append_kernel", "KV cache"),
    ("mlc", "fused_fused_dequantize_take_kernel", "embedding"),
    ("mlc", "fuse_add_norm_prefill_kernel", "norm"),
    ("mlc", "fused_rope_kernel", "RoPE"),
    ("mlc", "fused_split1_silu1_multiply1_kernel", "activation/elementwise"),
    ("mlc", "softmax_kernel", "sampling"),
    ("mlc", "sampler_take_probs_tir_kernel", "sampling"),
    ("mlc", "gather_probs_kernel", "sampling"),
    ("mlc", "gpu_2d_continuous_cumsum_kernel", "sampling"),
    ("mlc", "gather_hidden_states_kernel", "copy"),
    ("mlc", "void flashinfer::BatchDecodeWithPagedKVCacheKernel<P, 2u>(P)", "attention"),
    ("exllama", "void q4_matmul_kernel<true, false>(__half const*)", "quantised GEMV/GEMM"),
    ("exllama", "update_cache_kernel", "KV cache"),
    ("exllama", "void at::native::cunn_SoftMaxForward<8, c10::Half>(X)", "attention"),
    ("exllamav2", "void gemm_half_q_half_kernel<1, true>(__half const*)", "quantised GEMV/GEMM"),
    ("exllamav2", "rope_cuda_qk_kernel(__half*)", "RoPE"),
    ("exllamav3", "void exl3_mgemm_kernel<4>(int)", "quantised GEMV/GEMM"),
    ("exllamav3", "had_hf_r_128_kernel(float const*)", "quantise"),
    ("exllamav3", "_paged_kv_update_kernel", "KV cache"),
    ("exllamav3", "argmax_sample_kernel", "sampling"),
    ("llamacpp", "void mul_mat_vec_q<(ggml_type)12, 1>(const void *)", "quantised GEMV/GEMM"),
    ("llamacpp", "void mul_mat_vec_f<__half, float, 1, 256>(X)", "GEMM/GEMV"),
    ("llamacpp", "void rope_norm<true, false, float>(X)", "RoPE"),
    ("llamacpp", "void rms_norm_f32<1024, true>(float const*)", "norm"),
    ("llamacpp", "quantize_q8_1(float const*, void*)", "quantise"),
    ("torch", "nvjet_hsh_64x8_64x16_4x1_v_bz_splitK_TNT", "GEMM/GEMV"),
    ("torch", "void internal::gemvx::kernel<int, int, __half>(X)", "GEMM/GEMV"),
    ("torch", f"{AT}rsqrt_kernel_cuda(X)>(int)", "norm"),
    ("llamacpp", f"{AT}rsqrt_kernel_cuda(X)>(int)", "activation/elementwise"),
    ("torch", f"{AT}direct_copy_kernel_cuda(X)>(int)", "copy"),
    ("torch", f"{AT}CUDAFunctor_add<float> >(int)", "activation/elementwise"),
    ("torch", "void r<ReduceOp<float, at::native::ArgMaxOps<float>>>(T3)", "sampling"),
    ("torch", "property_update_kernel", OTHER),
    ("torch", "", OTHER),
]


@pytest.mark.parametrize(("engine", "name", "category"), REAL)
def test_shipped_rules_on_real_names(engine: str, name: str, category: str) -> None:
    assert categorise({7: name}, engine, shipped_rules()) == {7: category}


def test_the_users_rules_come_first_and_may_be_for_one_engine(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "[[rule]]\nmatch = 'rope'\ncategory = 'mine'\nengine = 'mlc'\n"
        "[[rule]]\nmatch = 'unheard'\ncategory = 'new'\n"
    )
    rules, names = load_rules(file), {1: "fused_rope_kernel", 2: "unheard_of", 3: "rope_kernel"}
    assert categorise(names, "mlc", rules) == {1: "mine", 2: "new", 3: "mine"}
    assert categorise(names, "torch", rules) == {1: "RoPE", 2: "new", 3: "RoPE"}


def test_the_default_file_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_rules() == shipped_rules()
    (tmp_path / "llmprof").mkdir()
    (tmp_path / "llmprof/categories.toml").write_text("[[rule]]\nmatch='x'\ncategory='y'\n")
    assert load_rules()[0].category == "y"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule]]\nmatch = '('\ncategory = 'x'", "rule 1: match is no regular expression"),
        ("[[rule]]\nregex = 'a'\ncategory = 'x'", "rule 1: unknown key 'regex'; known: match,"),
        ("[[rule]]\nmatch = 'a'", "rule 1: category is missing"),
        ("[[rule]]\nmatch = 3\ncategory = 'x'", "rule 1: match must be a text"),
        ("[[rule]]\nmatch = 'a'\ncategory = 'idle'", "category 'idle'"),
        ("[rule]\nmatch = 'a'", "two brackets"),
        ("rules = 1", "unknown entry 'rules'"),
        ("rule = [1]", "expected a table"),
        ("= nonsense", "categories file"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_rules(file)
    assert says in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        load_rules(tmp_path / "none.toml")
