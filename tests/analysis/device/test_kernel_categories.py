"""Rules: shipped ones on real names, the user's before them, one line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprof.analysis.device.naming.categories import OTHER, categorise, load_rules, shipped_rules
from llmprof.analysis.device.naming.rule_gates import gate_of, may_match
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
    (
        "x",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevArgs<4096>)",
        "communication",
    ),
    ("x", "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*)", "communication"),
    (
        "x",
        "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(X*)",
        "communication",
    ),
    ("x", "multimem_all_reduce_kernel", "communication"),
    ("x", "void allreduce_fusion_kernel_oneshot_lamport<RMSNorm>(P)", "communication"),
    ("x", "void deep_ep::internode_ll::dispatch<true, 7168>(void*)", "communication"),
    ("x", "nvshmem_put_kernel", "communication"),
    ("x", "mscclpp_allgather", "communication"),
    ("exllamav3", "pg_gather_small_kernel(PGContext*, unsigned int)", "communication"),
    ("exllamav3", "pg_barrier_kernel(PGContext*)", "communication"),
    ("x", "void vllm::moe::topkGatingSoftmax<4, 64>(float const*)", "MoE"),
    ("x", "fused_moe_kernel", "MoE"),
    ("x", "void moe_align_block_size_kernel<int>(int*)", "MoE"),
    ("x", "_matmul_ogs_NTN_bf16xbf16xmxfp4_64x256x128x1_swiglu", "MoE"),
    ("x", "bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x8x512u2_s4_et128x8_m128x8x32", "MoE"),
    ("x", "void moe::dev::routing::routingRenormalize::routingIndicesCluster<P>(P)", "MoE"),
    ("x", "void moe::dev::finalize::finalizeKernelVecLoad<P>(P)", "MoE"),
    ("x", "gemm_MxE4m3_MxE2m1MxE4m3_Fp32_Bfloat16_t128x64x256", "quantised GEMV/GEMM"),
    ("x", "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 128u>(float*)", "quantised GEMV/GEMM"),
    ("x", "_w8a8_block_fp8_matmul", "quantised GEMV/GEMM"),
    ("x", "fmhaSm100aKernel_QkvBfloat16OBfloat16H128PagedKvCausalP32", "attention"),
    ("x", "void flashinfer::BatchPrefillWithPagedKVCacheKernel<P>(P)", "attention"),
    ("x", "_fwd_grouped_kernel_stage1", "attention"),
    ("x", "kernel_unified_attention_2d", "attention"),
    ("x", "attn_fwd", "attention"),
    ("x", "void paged_attention_ll4mi_QKV_mfma16_kernel<__hip_bfloat16>(int)", "attention"),
    ("x", "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x32x64", "GEMM/GEMV"),
    ("x", "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<P>>(P)", "GEMM/GEMV"),
    ("x", "void wvSplitK_hf_sml_<__hip_bfloat16, 64>(int)", "GEMM/GEMV"),
    ("x", "_ZN7ck_tile6kentryILi1ENS_12Rmsnorm2dFwdINS_27X", "norm"),
    ("x", "_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi256EEvPT0_", "norm"),
    ("x", "triton_red_fused_add_mean_mul_pow_rsqrt_3", "norm"),
    ("x", "triton_poi_fused_add_cos_sin_0", "RoPE"),
    ("torch", "void vllm::rotary_embedding_kernel<c10::BFloat16, true>(long const*)", "RoPE"),
    ("torch", "fused_rope_embedding_bf16", "RoPE"),
    ("torch", "void embedding_bag_kernel<float>()", "embedding"),
    ("x", "triton_poi_fused_mul_silu_2", "activation/elementwise"),
    ("x", "triton_poi_fused_clone_5", "copy"),
    ("x", "triton_poi_fused__to_copy_1", "copy"),
    ("x", "triton_tem_fused_addmm_0", "GEMM/GEMV"),
    ("x", "triton_per_fused_argmax_4", "sampling"),
    ("x", "triton_poi_fused_index_put_7", "KV cache"),
    ("x", "void store_kvcache<2048l, 4, false, long>(StoreKVCacheParams)", "KV cache"),
    ("x", "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>(T*)", "KV cache"),
    ("x", "_selective_scan_update_kernel", "SSM"),
    ("x", "void causal_conv1d_update_kernel<Causal_conv1d>(P)", "SSM"),
    ("x", "_chunk_scan_fwd_kernel", "SSM"),
    ("x", "fused_recurrent_gated_delta_rule_fwd_kernel", "SSM"),
    ("x", "_lora_shrink_kernel", "LoRA"),
    ("x", "void bgmv_kernel<1, 4096>(float*)", "LoRA"),
    ("x", "void vllm::dynamic_per_token_scaled_fp8_quant_kernel<T>(T*)", "quantise"),
    ("x", "per_token_group_quant_8bit_kernel", "quantise"),
    ("x", "cudnn_infer_volta_scudnn_128x64_stridedB_small_nn_v1", "convolution"),
    ("x", "void cudnn::winograd_nonfused::winogradForwardData4x4<float>(P)", "convolution"),
    ("x", "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float>(P)", "norm"),
    ("x", "__amd_rocclr_copyBuffer", "copy"),
    ("x", "void fbgemm_gpu::permute_2D_data_kernel<int>(int)", "embedding"),
    ("x", "void convert_fp16(float*)", OTHER),
    ("torch", "property_update_kernel", OTHER),
    ("torch", "", OTHER),
]


@pytest.mark.parametrize(("engine", "name", "category"), REAL)
def test_shipped_rules_on_real_names(engine: str, name: str, category: str) -> None:
    assert categorise({7: name}, engine, shipped_rules()) == {7: category}


def test_a_gate_never_hides_a_match() -> None:
    """A rule is left out only where its expression cannot match."""
    for rule in shipped_rules():
        for _, name, _ in REAL:
            for text in (name, name.upper(), name[::-1]):
                if rule.pattern.search(text) is not None:
                    assert may_match(rule.gate, text.casefold()), (rule, text)


@pytest.mark.parametrize(
    ("pattern", "gate"),
    [
        ("abc", ("abc",)),
        ("abc|defg", ("abc", "defg")),
        ("abc|abcd", ("abc",)),
        ("abc|x", ()),  # x is too short
        ("ab?cde", ("cde",)),
        ("(?i:Abc)+[xy]z", ("abc",)),
        ("(abc|def)?", ()),
        ("[abc]{3}", ()),
        ("", ()),
        ("lo(?:ng|west)er_word", ("er_word",)),
    ],
)
def test_words_that_a_rule_must_find(pattern: str, gate: tuple[str, ...]) -> None:
    assert gate_of(re.compile(pattern)) == gate


@given(st.text("abcx|()?*+[]{}.1", max_size=12), st.lists(st.text("abcx1", max_size=8), max_size=8))
def test_gates_of_any_expression_are_safe(pattern: str, texts: list[str]) -> None:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError):
        return
    gate = gate_of(compiled)
    for text in texts:
        if compiled.search(text) is not None:
            assert may_match(gate, text.casefold())


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
