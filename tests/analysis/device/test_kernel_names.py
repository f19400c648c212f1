"""Names as real tracers spell them (nsys 2026, CUPTI with libstdc++'s demangler) → short names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprof.analysis.device.naming.kernel_names import (
    NAME_LIMIT,
    SHORT_LIMIT,
    demangle,
    short_name,
)

MANGLED_ADD = (
    "_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_15CUDAFunctor_addIfEESt5arrayIPcLm3EEEE"
    "viT0_T1_"
)
LAMBDA = "::{lambda()#2}::operator()() const::{lambda(float)#1}"
NSYS_LAMBDA = "::[lambda() (instance 2)]::operator ()() const::[lambda(float) (instance 1)]"
NAMES = [
    # MLC / TVM
    ("fused_fused_dequantize1_NT_matmul5_kernel", "dequantize1_NT_matmul5"),
    ("fused_fused_dequantize_fused_NT_matmul14_cast1_kernel", "dequantize_NT_matmul14_cast1"),
    ("fused_fused_dequantize3_NT_matmul7_kernel_2", "dequantize3_NT_matmul7 #2"),
    ("batch_decode_paged_kv_kernel", "batch_decode_paged_kv"),
    # ExLlama
    ("void q4_matmul_kernel<true, false, true>(__half const*, int const*)", "q4_matmul"),
    ("void gemm_half_q_half_gptq_kernel<(int)1, (bool)1>(const __half *)", "gemm_half_q_half_gptq"),
    ("void exl3_gemm_kernel<4, true, 2, 16, 32>(__half const*)", "exl3_gemm"),
    ("_paged_attn_decode_split_kernel", "paged_attn_decode_split"),
    # cuBLAS, CUTLASS
    ("nvjet_hsh_64x8_64x16_4x1_v_bz_splitK_TNT", "nvjet hsh 64x8 splitK TNT"),
    ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "nvjet tst 192x192 TNN"),
    (
        "ampere_fp16_s16816gemm_fp16_64x64_sliced1x2_ldg8_relu_f2f_stages_64x6_tn",
        "ampere fp16_s16816gemm 64x64 tn",
    ),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float>(X<float>)", "splitK reduce"),
    ("void gemv2T_kernel_val<int, int, __half, P<int> >(P<int>)", "gemv2T"),
    (
        "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __half, false, "
        "cublasGemvParamsEx<int, cublasGemvTensorStridedBatched<__half const> > >(X)",
        "gemvx",
    ),
    ("void cutlass::Kernel2<cutlass_75_wmma_tensorop_h161616gemm_32x32_128x2_tn_align8>(T1)", None),
    # attention
    (
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<(int)128, (bool)0, "
        "cutlass::bfloat16_t>, (bool)0>(flash::Flash_fwd_params)",
        "flash_fwd",
    ),
    (
        "void pytorch_flash::flash_fwd_splitkv_kernel<T<64, cutlass::half_t>, false>(P)",
        "flash_fwd_splitkv",
    ),
    ("void flashinfer::SinglePrefillWithKVCacheKernel<K<(M)1>, P>(P)", "SinglePrefillWithKVCache"),
    # torch, in both spellings
    (
        "void at::native::reduce_kernel<(int)512, (int)1, at::native::ReduceOp<float, "
        "at::native::MeanOps<float, float, float, float>, unsigned int, float, (int)4>>(T3)",
        "reduce mean",
    ),
    (
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, "
        "at::native::ArgMaxOps<float>, unsigned int, long, 4, 4> >(X)",
        "reduce argmax",
    ),
    (
        f"void at::native::vectorized_elementwise_kernel<4, at::native::rsqrt_kernel_cuda("
        f"at::TensorIteratorBase&){LAMBDA}, std::array<char*, 2ul> >(int, X)",
        "elementwise rsqrt",
    ),
    (
        f"void at::native::elementwise_kernel<(int)128, (int)4, void "
        f"at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda("
        f"at::TensorIteratorBase &){NSYS_LAMBDA}>(at::TensorIteratorBase &, const T1 &)"
        f"::[lambda(int) (instance 1)]>(int, T3)",
        "elementwise copy",
    ),
    (
        "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<at::native"
        "::BinaryFunctor<float, float, float, at::native::binary_internal::MulFunctor<float> > >"
        "(at::TensorIteratorBase&)::{lambda(int)#1}>(int, X)",
        "elementwise mul",
    ),
    (
        "void at::native::<unnamed>::CatArrayBatchedCopy_vectorized<O<(unsigned int)2>>(char *)",
        "cat",
    ),
    (
        "void at::native::(anonymous namespace)::indexSelectSmallIndex<c10::Half, long>(T)",
        "index select",
    ),
    ("void <unnamed>::softmax_warp_forward<float, float, (int)6, (bool)0>(T2 *)", "softmax"),
    # llama.cpp
    ("void mul_mat_vec_q<(ggml_type)12, 1, false, false, false>(const void *)", "mul_mat_vec_q"),
    ("void unary_op_kernel<&op_sigmoid, float>(const T2 *, T2 *, int)", "unary sigmoid"),
    ("void k_bin_bcast<&(op_add(float, float)), float, float>(float const*)", "bin_bcast add"),
    # still mangled, cut, odd
    (MANGLED_ADD, "elementwise add"),
    ("_ZL13mul_mat_vec_qIL9ggml_type12ELi1ELb0EEvPKvS2_", "mul_mat_vec_q"),
    ("void mul_mat_vec_q<(ggml_type)39, 1, true, fal", "mul_mat_vec_q"),
    ("triton_poi_fused_mul_silu_1", "triton_poi_fused_mul_silu_1"),
    ("kernel", "kernel"),
    ("", "(no name)"),
]


@pytest.mark.parametrize(("name", "short"), NAMES)
def test_short_names(name: str, short: str | None) -> None:
    if short is None:
        assert short_name(name).startswith("cutlass sm75 h161616gemm_32x32")
    else:
        assert short_name(name) == short


@given(st.one_of(st.text(), st.text("_ZNIELS0123456789av<>(){}[]: ", max_size=200)))
def test_any_text_becomes_a_short_printable_line(name: str) -> None:
    short = short_name(name)
    assert 0 < len(short) <= SHORT_LIMIT
    assert "\n" not in short and "\x1b" not in short


def test_demangles_and_leaves_other_names_alone() -> None:
    assert demangle(MANGLED_ADD).startswith("void at::native::vectorized_elementwise_kernel<4, ")
    for name in ("nvjet_hsh_64x8", "_Zbroken", "_Z" + "1a" * NAME_LIMIT, "_Zé", ""):
        assert demangle(name) == name


def test_a_huge_name_is_cut_and_a_bomb_is_not_expanded() -> None:
    assert short_name("void f<" + "a<" * 50_000) == "f"
    # Every group doubles the text: 2**200 characters when demangled.
    bomb = "_Z1f1AIiiE" + "".join(f"S_IS{n:X}_S{n:X}_E" for n in range(200))
    assert short_name(bomb) == "f"


def test_a_return_type_with_a_comparison_in_it() -> None:
    """vLLM's fused norm: ``>`` between parentheses closes no template."""
    name = (
        "std::enable_if<(((8)>(0)))&&vllm::_typeConvert<c10::Half>::exists, void>::type"
        " vllm::fused_add_rms_norm_kernel<c10::Half, 8, true>(c10::Half*, long, c10::Half const*)"
    )
    assert short_name(name) == "fused_add_rms_norm"
    assert short_name("void f<(A)(1<2)>(int)") == "f"
