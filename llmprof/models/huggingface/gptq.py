"""GPTQ projections of a safetensors folder, dequantised: an engine without GPTQ kernels computes
with the very weights that one with them holds. numpy and torch are imported when one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from llmprof.errors import ModelError

Find = Callable[[str], Any]
"""Name → what is stored under it (a slice, or a torch tensor); ``None`` where nothing is."""
_BITS = 4
_ALL_EIGHT = -0x77777778
"""0x88888888 as int32: eight stored zeros of 8."""
_FLOATS = ("F16", "BF16", "F32")
PARTS = ("qweight", "qzeros", "scales", "g_idx")
V2_NOTE = (
    "GPTQ zero points are all stored as 8: a symmetric model written as version 2 of the format has"
    " it, and read so, though it is labelled as version 1"
)


def is_gptq(document: Mapping[str, Any]) -> bool:
    """Does this ``config.json`` promise 4-bit GPTQ as the module ``gptq`` describes it?"""
    stated = document.get("quantization_config")
    return (
        isinstance(stated, Mapping)
        and stated.get("quant_method") == "gptq"
        and stated.get("bits") == _BITS
        and not stated.get("desc_act")
        and stated.get("checkpoint_format", "gptq") == "gptq"
    )


def check_projection(slice_of: Find, key: str, shape: tuple[int, ...]) -> None:
    """Shapes and types of the parts of ``key`` (``model.layers.0.mlp.up_proj``), [n, k] whole.

    Raises:
        ModelError: a part is missing, misshapen or of another type.
    """
    n, k = shape
    scales = _part(slice_of, f"{key}.scales", (None, n), _FLOATS)
    groups = scales.get_shape()[0]
    if not groups or k % groups or k % 8 or n % 8:
        raise ModelError(f"tensor {key}.scales: {groups} groups do not fit {k} rows")
    _part(slice_of, f"{key}.qweight", (k // 8, n), ("I32",))
    _part(slice_of, f"{key}.qzeros", (groups, n // 8), ("I32",))


def zeros_version(tensor_of: Find, keys: Iterable[str]) -> Literal[1, 2]:
    """Which version of the format the zero points of the projections ``keys`` are stored in.

    Version 1 stores zero - 1, version 2 the zero itself, and some quantisers wrote the second under
    the label of the first. A symmetric model tells: its zero is 8 everywhere, stored as 7 or as 8.
    """
    return 2 if all((tensor_of(f"{key}.qzeros") == _ALL_EIGHT).all() for key in keys) else 1


def read_projection(tensor_of: Find, key: str, version: Literal[1, 2]) -> Any:
    """The weight [n, k] of a checked projection, torch fp32.

    Args:
        version: of ``zeros_version``.

    Raises:
        ModelError: its rows are in another order than their groups.
    """
    import torch

    from llmprof.models import gptq

    packed = gptq.Quantised(
        tensor_of(f"{key}.qweight").numpy(),
        tensor_of(f"{key}.qzeros").numpy(),
        tensor_of(f"{key}.scales").half().numpy(),
    )
    order = tensor_of(f"{key}.g_idx")
    rows = packed.qweight.shape[0] * 8
    if order is not None and not _in_order(order.numpy(), rows, packed.scales.shape[0]):
        raise ModelError(f"tensor {key}.g_idx: act-order, which this engine does not implement")
    return torch.from_numpy(gptq.dequantise(packed, 1 if version == 1 else 0))


def _part(slice_of: Find, name: str, shape: tuple[int | None, int], dtypes: tuple[str, ...]) -> Any:
    part = slice_of(name)
    if part is None:
        raise ModelError(f"tensor {name} is in none of the model's safetensors files")
    found, dtype = list(part.get_shape()), str(part.get_dtype())
    if len(found) != 2 or found[1] != shape[1] or shape[0] not in (None, found[0]):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(f"tensor {name} has shape {found}, config.json says [{wanted}]")
    if dtype not in dtypes:
        raise ModelError(f"tensor {name} is {dtype}, expected {' or '.join(dtypes)}")
    return part


def _in_order(found: Any, rows: int, groups: int) -> bool:
    """All zero stands for no order at all."""
    import numpy as np

    wanted = np.arange(rows) // (rows // groups)
    return not found.any() or bool(np.array_equal(found, wanted))
