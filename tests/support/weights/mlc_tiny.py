"""A Llama written with ``tvm.relax.frontend.nn`` and compiled to a library as MLC LLM compiles it:
the same function names, calling convention and ``_metadata``. Needs apache-tvm with its compiler.

The structure follows python/mlc_llm/model/llama/llama_model.py and the pass order follows
python/mlc_llm/compiler_pass/pipeline.py of MLC LLM; passes that only make large models faster are
left out. ``q4f16_1`` stores eight 4-bit codes a word along the inputs and one scale for 32 of
them, w = (code - 7) * scale, as MLC's group quantisation does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlc_tiny_engine
import numpy as np
import tvm
from made_once import made_once
from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache

from llmprof.models.presets import LlamaConfig

CONFIG = LlamaConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
)
GROUP = 32
PER_WORD = 8


@dataclass(frozen=True)
class Build:
    """What to compile."""

    config: LlamaConfig = CONFIG
    target: str = "llvm"
    """``llvm`` or ``cuda``."""
    arch: str = "sm_90a"
    quantization: str = "q0f32"
    """``q0f32``, ``q0f16`` or ``q4f16_1``."""
    chunk: int = 64
    max_batch: int = 4
    cuda_graph: bool = True

    @property
    def dtype(self) -> str:
        return "float32" if self.quantization.endswith("f32") else "float16"

    @property
    def tvm_target(self) -> Any:
        if self.target == "llvm":
            # Of any x86-64: the library may run on another machine than the one that made it.
            return tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu"})
        host = {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}
        fields = {"kind": "cuda", "arch": self.arch, "max_threads_per_block": 1024}
        fields |= {"max_shared_memory_per_block": 49152, "thread_warp_size": 32}
        return tvm.target.Target(fields, host=host)


class QuantizedLinear(nn.Module):
    """Dequantisation inside the product, as MLC's fusion passes leave it."""

    def __init__(self, inputs: int, outputs: int | str) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.q_weight = nn.Parameter((outputs, inputs // PER_WORD), "uint32")
        self.q_scale = nn.Parameter((outputs, inputs // GROUP), "float16")

    def forward(self, x: Any) -> Any:
        def product(a: te.Tensor, words: te.Tensor, scales: te.Tensor) -> te.Tensor:
            b, s, k_size = a.shape
            k = te.reduce_axis((0, k_size), "k")

            def weight(n: Any, k: Any) -> Any:
                shift = ((k % PER_WORD) * 4).astype("uint32")
                code = tirx.bitwise_and(words[n, k // PER_WORD] >> shift, tirx.const(15, "uint32"))
                return (code.astype("float16") - tirx.const(7, "float16")) * scales[n, k // GROUP]

            return te.compute(
                (b, s, words.shape[0]),
                lambda i, j, n: te.sum(a[i, j, k] * weight(n, k), axis=k),
                name="NT_matmul",
            )

        args = [x, self.q_weight, self.q_scale]
        return op.tensor_expr_op(product, "fused_dequantize_NT_matmul", args)


def linear(build: Build, inputs: int, outputs: int | str) -> nn.Module:
    if build.quantization == "q4f16_1":
        return QuantizedLinear(inputs, outputs)
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    def __init__(self, build: Build) -> None:
        c = build.config
        self.q, self.kv, self.d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.qkv_proj = linear(build, c.hidden_size, (self.q + 2 * self.kv) * self.d)
        self.o_proj = linear(build, self.q * self.d, c.hidden_size)

    def forward(self, hidden: Any, cache: PagedKVCache, layer: int) -> Any:
        b, s, _ = hidden.shape
        qkv = op.reshape(self.qkv_proj(hidden), (b, s, self.q + 2 * self.kv, self.d))
        out = cache.attention_with_fused_qkv(layer, qkv, self.q, sm_scale=self.d**-0.5)
        return self.o_proj(op.reshape(out, (b, s, self.q * self.d)))


class FeedForward(nn.Module):
    def __init__(self, build: Build) -> None:
        c = build.config
        self.gate_up_proj = linear(build, c.hidden_size, 2 * c.intermediate_size)
        self.down_proj = linear(build, c.intermediate_size, c.hidden_size)

    def forward(self, x: Any) -> Any:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(op.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, build: Build) -> None:
        c = build.config
        self.self_attn = Attention(build)
        self.mlp = FeedForward(build)
        self.input_layernorm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False)

    def forward(self, hidden: Any, cache: PagedKVCache, layer: int) -> Any:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cache, layer)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Model(nn.Module):
    def __init__(self, build: Build) -> None:
        c = build.config
        self.embed_tokens = nn.Embedding("vocab_size", c.hidden_size)
        self.layers = nn.ModuleList([Layer(build) for _ in range(c.num_hidden_layers)])
        self.norm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False)

    def forward(self, hidden: Any, cache: PagedKVCache) -> Any:
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, cache, number)
        return self.norm(hidden)


class TinyLlama(nn.Module):
    def __init__(self, build: Build) -> None:
        self.build = build
        self.model = Model(build)
        self.lm_head = linear(build, build.config.hidden_size, "vocab_size")
        self.to(build.dtype)
        if build.quantization == "q4f16_1":
            for name, parameter in self.named_parameters():
                if name.endswith("q_weight"):
                    parameter.to("uint32")

    def embed(self, input_ids: Any) -> Any:
        return self.model.embed_tokens(input_ids)

    def get_logits(self, hidden: Any) -> Any:
        return self.lm_head(hidden).astype("float32")

    def prefill(self, input_embed: Any, paged_kv_cache: PagedKVCache) -> Any:
        hidden = self.model(input_embed, paged_kv_cache)

        def index(x: te.Tensor) -> te.Tensor:
            b, s, d = x.shape
            return te.compute((b, 1, d), lambda i, _, k: x[i, s - 1, k], name="index")

        last = op.tensor_expr_op(index, name_hint="index", args=[hidden])
        return self.get_logits(last), paged_kv_cache

    def decode(self, input_embed: Any, paged_kv_cache: PagedKVCache) -> Any:
        return self.get_logits(self.model(input_embed, paged_kv_cache)), paged_kv_cache

    def batch_prefill(self, input_embeds: Any, positions: Any, paged_kv_cache: PagedKVCache) -> Any:
        hidden = op.take(self.model(input_embeds, paged_kv_cache), positions, axis=1)
        return self.get_logits(hidden), paged_kv_cache

    def batch_decode(self, input_embeds: Any, paged_kv_cache: PagedKVCache) -> Any:
        return self.get_logits(self.model(input_embeds, paged_kv_cache)), paged_kv_cache

    def create_tir_paged_kv_cache(
        self,
        max_batch_size: Any,
        max_total_seq_len: Any,
        prefill_chunk_size: Any,
        page_size: Any,
        support_sliding_window: Any,
    ) -> PagedKVCache:
        c = self.build.config
        return TIRPagedKVCache(
            attn_kind="mha",
            max_batch_size=max_batch_size,
            max_total_seq_len=max_total_seq_len,
            prefill_chunk_size=prefill_chunk_size,
            page_size=page_size,
            support_sliding_window=support_sliding_window,
            layer_partition=relax.ShapeExpr([0, c.num_hidden_layers]),
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            qk_head_dim=c.head_dim,
            v_head_dim=c.head_dim,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL,
            rope_scale=1,
            rope_theta=int(c.rope_theta),
            rope_scaling={},
            rope_ext_factors=relax.PrimValue(0) if hasattr(relax, "PrimValue") else tirx.const(0),
            rotary_dim=c.head_dim,
            enable_disaggregation=False,
            dtype=self.build.dtype,
            target=self.build.tvm_target,
        )

    def spec(self) -> Any:
        hidden, dtype = self.build.config.hidden_size, self.build.dtype
        cache = nn.spec.Object(object_type=PagedKVCache)
        packed = {"param_mode": "packed", "effect_mode": "none"}

        def forward(shape: list[Any], **more: Any) -> dict[str, Any]:
            embeds = nn.spec.Tensor([*shape, hidden], dtype)
            return {"input_embed": embeds, **more, "paged_kv_cache": cache, "$": packed}

        def renamed(fields: dict[str, Any]) -> dict[str, Any]:
            return {("input_embeds" if k == "input_embed" else k): v for k, v in fields.items()}

        positions = {"positions": nn.spec.Tensor(["batch_size"], "int32")}
        sizes = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size")
        return nn.spec.ModuleSpec.from_raw(
            {
                "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32"), "$": packed},
                "prefill": forward([1, "seq_len"]),
                "decode": forward([1, 1]),
                "batch_prefill": renamed(forward([1, "seq_len"], **positions)),
                "batch_decode": renamed(forward(["batch_size", 1])),
                "create_tir_paged_kv_cache": {
                    **dict.fromkeys((*sizes, "support_sliding_window"), int),
                    "$": {"param_mode": "none", "effect_mode": "none"},
                },
            },
            self,
        )


def compile_library(build: Build, path: Path, metadata: dict[str, Any] | None = None) -> Path:
    """Compile to ``path``; ``metadata`` replaces entries of ``_metadata``, ``None`` removes one.

    Compiling takes seconds: within one run of the tests each library is compiled once, whichever
    process of it asks first.
    """
    return made_once(f"{build!r} {metadata!r}", path, lambda to: _compile(build, to, metadata))


def _compile(build: Build, path: Path, metadata: dict[str, Any] | None) -> Path:
    target = build.tvm_target
    model = TinyLlama(build)
    module, parameters, externs = model.export_tvm(spec=model.spec(), allow_extern=True)
    document = _metadata(build, parameters)
    for key, value in (metadata or {}).items():
        document[key] = value
    document = {key: value for key, value in document.items() if value is not None}
    if build.target == "cuda":
        _compile_with_nvcc()
    config = {"relax.backend.use_cuda_graph": build.cuda_graph and build.target == "cuda"}
    with target, tvm.transform.PassContext(config=config):
        executable = relax.build(
            module, target=target, relax_pipeline=_pipeline(build, document, externs)
        )
    executable.export_library(str(path))
    return path


def _compile_with_nvcc() -> None:
    """As MLC does it; the default needs the package cuda-bindings."""
    from tvm.support import nvcc

    def compiled(code: str, _target: Any = None) -> Any:
        return nvcc.compile_cuda(code, target_format="fatbin", compiler="nvcc")

    tvm.register_global_func("tvm_callback_cuda_compile", compiled, override=True)


def _metadata(build: Build, parameters: list[tuple[str, Any]]) -> dict[str, Any]:
    c = build.config
    return {
        "model_type": "llama",
        "quantization": build.quantization,
        "context_window_size": c.max_position_embeddings,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": build.chunk,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": "kv_cache",
        "max_batch_size": build.max_batch,
        "active_vocab_size": c.vocab_size,
        "model_task": "chat",
        "params": [
            {
                "name": name,
                "shape": [s if isinstance(s, int) else s.name for s in parameter.shape],
                "dtype": str(parameter.dtype),
                "preprocs": [],
                "pipeline_stages": [0],
            }
            for name, parameter in parameters
        ],
        "kv_cache": {
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "head_dim": c.head_dim,
        },
        "memory_usage": {"prefill": 1 << 20, "decode": 1 << 20},
    }


def _pipeline(build: Build, document: dict[str, Any], externs: list[Any]) -> Any:
    from tvm.s_tir import dlight as dl

    bounds = {
        "total_seq_len": build.config.max_position_embeddings,
        "seq_len": build.chunk,
        "batch_size": build.max_batch,
    }
    hints = {"batch_decode": ["batch_size"]}

    @tvm.transform.module_pass(opt_level=0)
    def attributes(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        for name, function in mod.functions_items():
            if isinstance(function, relax.Function):
                function = function.with_attr("tir_var_upper_bound", bounds)
                function = function.with_attr("tir_non_negative_var", ["vocab_size"])
                function = function.with_attr("relax.memory_plan_dynamic_func_output", True)
                if name.name_hint in hints:
                    captured = hints[name.name_hint]
                    function = function.with_attr(
                        "relax.rewrite_cuda_graph.capture_symbolic_vars", captured
                    )
                mod[name] = function
        return mod

    @tvm.transform.module_pass(opt_level=0)
    def attach_engine(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        if build.target != "llvm":
            return mod
        hidden = build.config.hidden_size
        return mlc_tiny_engine.attach(mod, build.chunk, hidden, build.dtype)

    @tvm.transform.module_pass(opt_level=0)
    def attach_metadata(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        builder = relax.BlockBuilder()
        with builder.function("_metadata", params=[]):
            builder.emit_func_output(relax.StringImm(json.dumps(document)))
        mod["_metadata"] = builder.finalize()["_metadata"]
        return mod

    @tvm.transform.module_pass(opt_level=0)
    def attach_graph_allocation(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        found = [v for v, _ in mod.functions_items() if v.name_hint.startswith("cuda_graph_alloc")]
        if not found:
            return mod
        builder = relax.BlockBuilder(mod)
        with builder.function("cuda_graph_alloc_init", []):
            call = relax.op.call_builtin_with_ctx(
                "vm.builtin.cuda_graph.get_cached_alloc",
                args=[found[0], relax.prim_value(0)],
                ty_args=relax.AnyType(),
            )
            builder.emit_func_output(call)
        return builder.finalize()

    schedules = (
        [
            dl.gpu.Matmul(),
            dl.gpu.GEMV(),
            dl.gpu.Reduction(),
            dl.gpu.GeneralReduction(),
            dl.gpu.Fallback(),
        ]
        if build.target == "cuda"
        else [dl.cpu.GEMV()]
    )
    t = relax.transform
    passes = [
        attach_engine,
        attributes,
        tirx.transform.BindTarget(build.tvm_target),
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
        dl.ApplyDefaultSchedule(*schedules),
        t.RewriteDataflowReshape(),
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        t.StaticPlanBlockMemory(),
        attach_metadata,
        t.RewriteCUDAGraph(),
        attach_graph_allocation,
        t.LowerAllocTensor(),
        t.KillAfterLastUse(),
        t.LowerRuntimeBuiltin(),
        t.VMShapeLower(),
        t.AttachGlobalSymbol(),
        t.AttachExternModules(externs),
    ]

    @tvm.transform.module_pass(opt_level=0)
    def pipeline(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return tvm.transform.Sequential(passes)(mod)

    return pipeline


def weights_from_hf(
    tensors: dict[str, np.ndarray], config: LlamaConfig, dtype: str
) -> dict[str, np.ndarray]:
    """HF names to MLC's: q, k, v in one matrix, gate and up in one."""
    found: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        found[name] = value.astype(dtype)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        attention = [found.pop(f"{prefix}self_attn.{n}_proj.weight") for n in "qkv"]
        found[f"{prefix}self_attn.qkv_proj.weight"] = np.concatenate(attention)
        pair = [found.pop(f"{prefix}mlp.{n}_proj.weight") for n in ("gate", "up")]
        found[f"{prefix}mlp.gate_up_proj.weight"] = np.concatenate(pair)
    return found
