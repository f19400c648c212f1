"""Which files of a Hugging Face folder are the model. Standard library only.

As transformers decides it (``_get_resolved_checkpoint_files`` in modeling_utils.py): a whole
``model.safetensors`` first, then the shards that the index names; an adapter is no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmprof.errors import ModelError
from llmprof.models.locate import read_json
from llmprof.models.safetensors.header import sampled_id
from llmprof.plaintext import one_line

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_COSMETIC = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "llmprof",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Keys of ``config.json`` that change nothing that is computed."""
HARMLESS = (".rotary_emb.inv_freq", ".self_attn.masked_bias")
"""Ends of names of tensors that old transformers stored; they follow from the configuration."""


def is_adapter(file: Path) -> bool:
    return file.name.startswith("adapter_")


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files, and notes about others that are not read.

    Raises:
        ModelError: none, or an index that names a file which is not directly in the folder.
    """
    present = sorted(folder.glob("*.safetensors"))
    files = [file for file in present if not is_adapter(file)]
    notes = [f"{file.name} is an adapter: not applied" for file in present if is_adapter(file)]
    if not files:
        beside = " but an adapter; give the model that it belongs to" if notes else ""
        raise ModelError(f"{one_line(str(folder))}: no *.safetensors{beside}")
    if folder / WHOLE in files:
        chosen, why = [folder / WHOLE], f"{WHOLE} is there, which transformers loads as well"
    elif (folder / INDEX).is_file():
        chosen, why = _shards(folder), f"{INDEX} does not name them"
    else:
        return files, notes
    left = [file.name for file in files if file not in chosen]
    if left:
        names = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        notes.append(f"not read: {one_line(names, 120)}; {why}")
    return chosen, notes


def folder_id(files: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """Equal for two folders that hold the same weights and say the same of how to compute.

    Args:
        files: of ``weight_files``.
        settings: ``config.json``.
    """
    told = {key: value for key, value in settings.items() if key not in _COSMETIC}
    return sampled_id(files, json.dumps(told, sort_keys=True))


def _shards(folder: Path) -> list[Path]:
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{one_line(str(folder / INDEX))}: no weight_map")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            shown = one_line(str(folder / INDEX))
            raise ModelError(f"{shown}: shard {one_line(name, 80)!r} is not in the folder")
    return [folder / name for name in names]
