"""What MLC LLM's own engine takes from a library beside the model's functions: its embedding
buffer, the softmax with temperature, the logit processors (cpp/serve/{model,logit_processor}.cc).

As compiler_pass/attach_{embedding_allocator,softmax_with_temperature,logit_processor}.py of MLC LLM
attach them, in plainer words and for the CPU only.
"""

from typing import Any

import tvm
from tvm import relax, te, tirx
from tvm.script import tirx as T


def attach(mod: tvm.IRModule, chunk: int, hidden_size: int, dtype: str) -> tvm.IRModule:
    """The module with the engine's functions; ``chunk`` is the longest prefill."""
    mod = mod.clone()
    for function in (apply_logit_bias_inplace, apply_penalty_inplace, apply_bitmask_inplace):
        mod[function.attrs["global_symbol"]] = function
    builder = relax.BlockBuilder(mod)
    with builder.function("alloc_embedding_tensor", []):
        shape = relax.ShapeExpr([chunk, hidden_size])
        made = relax.op.builtin.alloc_tensor(shape, relax.DataTypeImm(dtype), 0)
        builder.emit_func_output(builder.emit(made))
    batch, vocab = tirx.Var("batch_size", "int64"), tirx.Var("vocab_size", "int64")
    logits = relax.Var("logits", relax.TensorType([batch, 1, vocab], "float32"))
    temperature = relax.Var("temperature", relax.TensorType([batch], "float32"))
    with builder.function("softmax_with_temperature", [logits, temperature]):
        with builder.dataflow():
            made = builder.emit_output(builder.call_te(_softmax, logits, temperature))
        builder.emit_func_output(made)
    return builder.finalize()


def _softmax(logits: te.Tensor, temperature: te.Tensor) -> te.Tensor:
    """Temperature 0: all of it on the largest, shared where several are as large."""
    batch, _, vocab = logits.shape
    j = te.reduce_axis((0, vocab), "j")
    top = te.compute((batch,), lambda i: te.max(logits[i, 0, j], axis=j), name="top")

    def weight(i: Any, j: Any) -> Any:
        value = logits[i, 0, j] - top[i]
        return tirx.if_then_else(
            temperature[i] > 1e-5,
            tirx.exp(value / temperature[i]),
            tirx.if_then_else(value == 0.0, 1.0, 0.0),
        )

    k = te.reduce_axis((0, vocab), "k")
    total = te.compute((batch,), lambda i: te.sum(weight(i, k), axis=k), name="total")
    return te.compute(
        (batch, 1, vocab), lambda i, _, n: weight(i, n) / total[i], name="softmax_with_temperature"
    )


@T.prim_func(s_tir=True)
def apply_logit_bias_inplace(
    var_logits: T.handle, var_pos2seq_id: T.handle, var_token_ids: T.handle, var_bias: T.handle
) -> None:
    T.func_attr({"global_symbol": "apply_logit_bias_inplace", "tirx.is_scheduled": True})
    batch_size = T.int32()
    vocab_size = T.int32()
    num_token = T.int32()
    logits = T.match_buffer(var_logits, (batch_size, vocab_size), "float32")
    pos2seq_id = T.match_buffer(var_pos2seq_id, (num_token,), "int32")
    token_ids = T.match_buffer(var_token_ids, (num_token,), "int32")
    bias = T.match_buffer(var_bias, (num_token,), "float32")
    for i in range(num_token):
        logits[pos2seq_id[i], token_ids[i]] += bias[i]


@T.prim_func(s_tir=True)
def apply_penalty_inplace(
    var_logits: T.handle,
    var_seq_ids: T.handle,
    var_pos2seq_id: T.handle,
    var_token_ids: T.handle,
    var_token_cnt: T.handle,
    var_penalties: T.handle,
) -> None:
    T.func_attr({"global_symbol": "apply_penalty_inplace", "tirx.is_scheduled": True})
    batch_size = T.int32()
    vocab_size = T.int32()
    num_token = T.int32()
    num_seq = T.int32()
    logits = T.match_buffer(var_logits, (batch_size, vocab_size), "float32")
    seq_ids = T.match_buffer(var_seq_ids, (num_seq,), "int32")
    pos2seq_id = T.match_buffer(var_pos2seq_id, (num_token,), "int32")
    token_ids = T.match_buffer(var_token_ids, (num_token,), "int32")
    token_cnt = T.match_buffer(var_token_cnt, (num_token,), "int32")
    penalties = T.match_buffer(var_penalties, (num_seq, 3), "float32")
    for i in range(num_token):
        logits[seq_ids[pos2seq_id[i]], token_ids[i]] -= (
            penalties[pos2seq_id[i], 0] + token_cnt[i] * penalties[pos2seq_id[i], 1]
        )
        logits[seq_ids[pos2seq_id[i]], token_ids[i]] = T.if_then_else(
            logits[seq_ids[pos2seq_id[i]], token_ids[i]] < 0,
            logits[seq_ids[pos2seq_id[i]], token_ids[i]] * penalties[pos2seq_id[i], 2],
            logits[seq_ids[pos2seq_id[i]], token_ids[i]] / penalties[pos2seq_id[i], 2],
        )


@T.prim_func(s_tir=True)
def apply_bitmask_inplace(
    var_logits: T.handle, var_seq_ids: T.handle, var_bitmask: T.handle
) -> None:
    T.func_attr({"global_symbol": "apply_bitmask_inplace", "tirx.is_scheduled": True})
    batch_size = T.int32()
    vocab_size = T.int32()
    num_seq = T.int32()
    logits = T.match_buffer(var_logits, (batch_size, vocab_size), "float32")
    seq_ids = T.match_buffer(var_seq_ids, (num_seq,), "int32")
    bitmask = T.match_buffer(var_bitmask, (batch_size, (vocab_size + 31) // 32), "int32")
    for row in range(num_seq):
        for i in range(vocab_size):
            logits[seq_ids[row], i] = T.if_then_else(
                (bitmask[seq_ids[row], i // 32] >> (i % 32)) & 1 == 1,
                logits[seq_ids[row], i],
                T.min_value("float32"),
            )
