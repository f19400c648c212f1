"""Kernel names made readable: demangling, and a short name for tables and timelines.

Two spellings of a C++ name occur: libstdc++'s (``{lambda()#3}``, ``(anonymous namespace)``, ``4``)
and that of nsys (``[lambda() (instance 3)]``, ``<unnamed>``, ``(int)4``).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import lru_cache

from llmprof.plaintext import one_line

NAME_LIMIT = 4096
"""Characters of a name that are looked at; a template in there may have many thousands."""
SHORT_LIMIT = 48

_Demangler = Callable[[bytes], "str | None"]


@lru_cache(maxsize=16384)
def demangle(name: str) -> str:
    """The C++ name of an Itanium-mangled one (``_Z…``); any other name as it is.

    For names of a process that the user runs, while recording. A name read from a file is never
    given to it: a few hundred bytes of back-references expand to terabytes, and libstdc++ has no
    bound. ``short_name`` and the category rules take mangled names too.
    """
    if not name.startswith("_Z") or len(name) > NAME_LIMIT or not name.isascii():
        return name
    found = _demangler()(name.encode())
    # libstdc++ before GCC 13 reads DF16b, bfloat16, as a fixed-point type.
    return found if found and "_Accum" not in found else name


@lru_cache(maxsize=1)
def _demangler() -> _Demangler:
    """libstdc++'s demangler, or one that knows no name where there is no libstdc++.

    ``char *__cxa_demangle(const char *name, char *buffer, size_t *length, int *status)``,
    Itanium C++ ABI §3.4: with no buffer the result is malloc'ed and the caller frees it.
    """
    try:
        call = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return lambda _mangled: None
    call.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 3
    call.restype = ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None

    def with_abi(mangled: bytes) -> str | None:
        text = call(mangled, None, None, None)
        if not text:
            return None
        try:
            return ctypes.string_at(text).decode(errors="replace")
        finally:
            free(text)

    return with_abi


@lru_cache(maxsize=16384)
def short_name(name: str) -> str:
    """At most 48 printable characters: the kernel's own name and what it does.

    Template parameters are left out, but for the operation of a generic kernel:
    ``vectorized_elementwise_kernel<4, CUDAFunctor_add<…>>`` is ``elementwise add``.
    """
    text = name[:NAME_LIMIT].strip()
    path, arguments = _mangled_parts(text) if text.startswith("_Z") else _parts(text)
    for rename in (_torch, _cublas, _cutlass, _ggml, _tvm):
        short = rename(path, arguments)
        if short:
            return one_line(short, SHORT_LIMIT)
    return one_line(_own_name(path) or text, SHORT_LIMIT) or "(no name)"


_PUNCTUATION = re.compile(r"[<>(){}\[\]]")
_CLOSES = {">": "<", ")": "(", "}": "{", "]": "["}
_ANONYMOUS = re.compile(r"\(anonymous namespace\)::|<unnamed>::")


def _parts(text: str) -> tuple[list[str], str]:
    """``(["at", "native", "reduce_kernel"], "512, 1, …")``: qualified name, template arguments.

    The return type ends at the last blank outside of brackets, the name at the first ``(`` there.
    """
    text = _ANONYMOUS.sub("", text)
    last, head, arguments = 0, "", ""
    opened = 0
    inside: list[str] = []
    for mark in _PUNCTUATION.finditer(text):
        at, sign = mark.start(), mark[0]
        if not inside:
            head += text[last:at]
            if sign != "<":
                break
            opened, arguments = at + 1, text[at + 1 :]
        _enter_or_leave(inside, sign)
        if not inside:
            arguments, last = text[opened:at], at + 1
    else:
        head += "" if inside else text[last:]
    words = head.split()
    return (words[-1].split("::") if words else []), arguments


def _enter_or_leave(inside: list[str], sign: str) -> None:
    """One bracket more or less: ``>`` between parentheses compares, as in ``enable_if<((8)>(0))>``,
    and whatever was opened as ``<`` there ends with them."""
    if sign in _CLOSES.values():
        inside.append(sign)
        return
    opener = _CLOSES[sign]
    if sign == ">":
        if inside and inside[-1] == opener:
            inside.pop()
        return
    while inside and inside[-1] == "<":
        inside.pop()
    if inside:
        inside.pop()


_MANGLED_TOKEN = re.compile(r"L[a-z]n?\d+E|[ST][0-9A-Z]*_|(\d+)|.", re.DOTALL)
_MANGLED_PATH = re.compile(r"L?(\d+)")


def _mangled_parts(text: str) -> tuple[list[str], str]:
    """The same from ``_ZN2at6native13reduce_kernelI…``, whose names carry their length before them.

    The template arguments come without their structure: ``at::native::ReduceOp::…``.
    """
    nested = text.startswith("_ZN")
    at, path = 3 if nested else 2, list[str]()
    while (mark := _MANGLED_PATH.match(text, at)) is not None and (nested or not path):
        at = mark.end() + int(mark[1][:5])
        path.append(text[mark.end() : at])
    inner = []
    while (mark := _MANGLED_TOKEN.match(text, at)) is not None:
        at = mark.end() + int(mark[1][:5] if mark[1] else 0)
        if mark[1]:
            inner.append(text[mark.end() : at])
    parts = [[n for n in names if not n.startswith("_GLOBAL__N_")] for names in (path, inner)]
    return parts[0], "::".join(parts[1])


def _own_name(path: list[str]) -> str:
    """The last part of the path without its ``_kernel``; its parent where nothing else is left."""
    base = path[-1] if path else ""
    bare = re.sub(r"(?:_kernel|(?<=[a-z])Kernel|_kernel_val)$", "", base).strip("_")
    if bare in ("kernel", "Kernel", "device", "") and len(path) > 1:
        return f"{path[-2]} {base}"
    return bare or base


_TORCH_OPERATIONS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:direct|bfloat16|float16|float8)_(copy)_kernel_cuda",
        r"CUDAFunctor(?:OnSelf|OnOther)?_([a-z]+)",
        r"\b(?!gpu_)([a-z]\w*?)_kernel_cuda",
        r"\b(?!gpu_)([a-z]\w*?)(?:_tensor_scalar|_tensor_tensor)?_kernel_impl",
        r"([A-Z][A-Za-z]+?)(?:CUDA)?KernelImpl",
        r"\b(?!Binary|AUnary|BUnary)([A-Z][A-Za-z]+?)(?:Nan)?Functor",
        r"([A-Z][A-Za-z]+?)Ops\b",
        r"\b([a-z]+)_functor",
        r"\b([a-z]\w*?)_cuda_out",
        r"\b(?!gpu_)([a-z]\w*?)(?:_scalar)?_kernel\b",
    )
)
_TORCH_NAMES = (
    (re.compile(r"^CatArrayBatchedCopy"), "cat"),
    (re.compile(r"^indexSelect(Small|Large)Index"), "index select"),
    (re.compile(r"^vectorized_gather_kernel"), "gather"),
    (re.compile(r"^(cunn_SoftMaxForward|softmax_warp_forward)"), "softmax"),
)


def _torch(path: list[str], arguments: str) -> str:
    base = path[-1] if path else ""
    for pattern, short in _TORCH_NAMES:
        if pattern.search(base):
            return short
    if base == "reduce_kernel":
        family = "reduce"
    elif "elementwise_kernel" in base:
        family = "elementwise"
    else:
        return ""
    for pattern in _TORCH_OPERATIONS:
        if (mark := pattern.search(arguments)) is not None:
            return f"{family} {_words(mark[1])}"
    return family


def _words(name: str) -> str:
    """``CompareEq`` → ``compare eq``, ``masked_fill`` → ``masked fill``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
    return re.sub(r"^arg (max|min)$", r"arg\1", spaced)


_NVJET = re.compile(
    r"nvjet_(?:(sm\d+)_)?([a-z]+)_(?:mma_)?(\d+x\d+)\w*?_(?:(splitK)_)?([TN]{3,4})$"
)
_SASS_GEMM = re.compile(
    r"(volta|turing|ampere|hopper)_((?:[a-z0-9]+_)?[a-z0-9]+gemm)_\w*?(\d+x\d+)_\w*?([tn]{2})$"
)
_XMMA = re.compile(r"(sm\d+_xmma_gemm)_([a-z0-9]+?)_\w*?([tn]{2})_n_tilesize(\d+x\d+x\d+)")


def _cublas(path: list[str], _arguments: str) -> str:
    base = path[-1] if path else ""
    if path[-2:] == ["gemvx", "kernel"]:
        return "gemvx"
    if (mark := _NVJET.match(base)) is not None:
        return " ".join(filter(None, ("nvjet", *mark.groups())))
    if (mark := _SASS_GEMM.match(base)) is not None:
        return " ".join(mark.groups())
    if (mark := _XMMA.match(base)) is not None:
        return f"{mark[1]} {mark[2]} {mark[3]} {mark[4]}"
    if base.startswith("splitKreduce_kernel"):
        return "splitK reduce"
    return ""


_CUTLASS = re.compile(r"cutlass_\d+_\w+?gemm\w*")
_FLASH_3 = re.compile(r"FlashAttn(?:Fwd|Bwd)\w*")


def _cutlass(path: list[str], arguments: str) -> str:
    base = path[-1] if path else ""
    if base.startswith(("fmha", "flash")):
        return ""
    if path[:1] != ["cutlass"] and not base.startswith("cutlass"):
        return ""
    mark = _FLASH_3.search(arguments) or _CUTLASS.search(base) or _CUTLASS.search(arguments)
    if mark is None:
        return ""
    return re.sub(r"^cutlass_(\d+)_(?:wmma_)?tensorop_", r"cutlass sm\1 ", mark[0])


_GGML_OPERATION = re.compile(r"^(unary|unary_gated|k_bin_bcast)(?:_op_kernel|_unravel|)$")


def _ggml(path: list[str], arguments: str) -> str:
    """llama.cpp names the operation as a function: ``unary_op_kernel<&op_silu, float>``."""
    family = _GGML_OPERATION.match(path[-1] if path else "")
    operation = re.search(r"\bop_([a-z_]+)", arguments)
    return f"{family[1].removeprefix('k_')} {operation[1]}" if family and operation else ""


_TVM = re.compile(r"^(?!triton_)([A-Za-z]\w*?)_kernel(?:_(\d+))?$")
_TVM_FUSED = re.compile(r"(?:^|_)fused(?=_)")


def _tvm(path: list[str], arguments: str) -> str:
    """``fused_fused_dequantize1_NT_matmul5_kernel_2`` → ``dequantize1_NT_matmul5 #2``.

    The numbers stay: they are all that tells the layers' matrices apart.
    """
    mark = _TVM.match(path[-1]) if len(path) == 1 and not arguments else None
    if mark is None:
        return ""
    bare = _TVM_FUSED.sub("", mark[1]).strip("_")
    if bare == mark[1] and not mark[2]:
        return ""  # nothing of TVM about it
    return f"{bare} #{mark[2]}" if mark[2] else bare
