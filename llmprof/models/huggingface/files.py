"""Which files of a Hugging Face folder are the model. Standard library only.

As transformers decides it (``_get_resolved_checkpoint_files`` in modeling_utils.py): a whole
``model.safetensors`` first, then the shards that the index names; an adapter is no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmprof.errors import ModelError
from llmprof.models.locate import read_json
from llmprof.models.presets import EMBEDDING, HEAD, LlamaConfig
from llmprof.models.safetensors.header import StoredTensor, only, read_tensor_table, same_bytes
from llmprof.plaintext import one_line

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
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


def read_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors of all files.

    Raises:
        ModelError: a damaged file, or one name in two of them: whose values count?
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        table = read_tensor_table(file)
        if twice := tensors.keys() & table.keys():
            name = min(twice)
            raise ModelError(
                f"{one_line(str(file))}: tensor {one_line(name, 80)} is in"
                f" {one_line(tensors[name].file.name)} as well; leave the files of one model in the"
                " folder"
            )
        tensors.update(table)
    return tensors


def all_bf16(files: Sequence[Path]) -> bool:
    """Are all floats of the files bfloat16?"""
    tables = [read_tensor_table(file) for file in files]
    found = {t.dtype for table in tables for t in table.values() if t.dtype in _FLOATS}
    return found <= {"BF16"}


def harmless(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Does a tensor that is left out change nothing?

    What follows from the configuration, a bias of zeros, a tied head that equals its table.
    """
    tensor = tensors.get(name)
    if name.endswith(HARMLESS):
        return True
    if tensor is None:
        return False
    if name == HEAD and EMBEDDING in tensors:
        return same_bytes(tensor, tensors[EMBEDDING])
    return name.endswith(".bias") and only(tensor, 0)


def refuse_unused(
    shown: str, engine: str, config: LlamaConfig, tensors: Mapping[str, StoredTensor]
) -> None:
    """Raise ``ModelError`` for the first tensor of a Llama that is not quantised for which
    ``engine`` has no place: left out, it would be another model."""
    wanted = config.tensor_shapes()
    for name in tensors:
        if name not in wanted and not harmless(name, tensors):
            raise ModelError(
                f"{shown}: tensor {one_line(name, 80)} is nothing that {engine}'s Llama computes"
                " with, and config.json does not promise it"
            )


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
