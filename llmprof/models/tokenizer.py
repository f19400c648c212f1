"""Text ↔ token ids, through HF ``tokenizers``, imported late."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.models.gguf.header import read_header
from llmprof.models.locate import ModelRef
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

_TOKENS, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
_TYPES = "tokenizer.ggml.token_type"
_CONTROL, _USER_DEFINED = 3, 4  # llama_token_type in llama.h
_GIVE_IDS = "; give --prompt-ids or --prompt-len"

STAND_IN = "tokenizer-is-a-stand-in"
"""Beside a ``tokenizer.json`` that is only there because MLC LLM's engine insists on one."""


class Tokenizer:
    """One model's tokenizer, which gives the ids of a text and nothing else."""

    def __init__(self, inner: Any) -> None:
        # What was set while the model was trained or served is kept in the file and would be
        # applied to our prompt: filled up to a length, cut at one, merges left out at random.
        inner.no_padding()
        inner.no_truncation()
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None
        self._inner = inner

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; what the file's own post-processor adds (BOS) included."""
        return list(self._inner.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens shown; ids without a token give nothing."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    def save(self, path: Path) -> None:
        """Write it as a ``tokenizer.json``."""
        self._inner.save(str(path))


def load_tokenizer(ref: ModelRef) -> Tokenizer | Unavailable:
    """The tokenizer that a model's files carry, or why there is none.

    Raises:
        ModelError: the GGUF file is corrupt.
    """
    if ref.kind in ("preset", "config") or ref.path is None:
        return Unavailable(f"{ref.name} has random weights and no tokenizer{_GIVE_IDS}")
    if util.find_spec("tokenizers") is None:
        return Unavailable(f"the package tokenizers is not installed: {how_to_install('torch')}")
    if ref.kind == "mlc" and (Path(ref.path) / STAND_IN).is_file():
        return Unavailable(f"{ref.name} has random weights and a stand-in tokenizer{_GIVE_IDS}")
    return _from_gguf(ref.path) if ref.kind == "gguf" else _from_folder(Path(ref.path))


def _from_folder(folder: Path) -> Tokenizer | Unavailable:
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        return Unavailable(f"no tokenizer.json in {one_line(str(folder))}{_GIVE_IDS}")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as why:  # noqa: BLE001 - what tokenizers raises
        return Unavailable(f"{one_line(str(file))}: {one_line(str(why), 120)}{_GIVE_IDS}")


def _from_gguf(path: str) -> Tokenizer | Unavailable:
    """Byte-level BPE out of the metadata; other kinds would need llama.cpp's own code."""
    header = read_header(path, keep={_TOKENS, _MERGES, _TYPES})
    model = header.text("tokenizer.ggml.model")
    kind = header.text("tokenizer.ggml.pre")
    if model != "gpt2" or kind not in _PRE:
        found = one_line(f"{model}/{kind}", 60)
        return Unavailable(f"GGUF tokenizer {found} is not implemented{_GIVE_IDS}")
    tokens, merges = header.metadata.get(_TOKENS), header.metadata.get(_MERGES)
    types = header.metadata.get(_TYPES)
    if not isinstance(tokens, list) or not isinstance(merges, list):
        return Unavailable(f"the GGUF file has no tokens or no merges{_GIVE_IDS}")
    if not isinstance(types, list) or len(types) != len(tokens):
        types = [1] * len(tokens)
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as HfTokenizer

    pairs = [(left, right) for left, _, right in (str(m).partition(" ") for m in merges)]
    vocab = {str(token): number for number, token in enumerate(tokens)}
    try:
        inner = HfTokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as why:  # noqa: BLE001 - what tokenizers raises
        return Unavailable(f"GGUF tokenizer: {one_line(str(why), 120)}{_GIVE_IDS}")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(
        [
            AddedToken(str(token), special=True, normalized=False)
            for token, number in zip(tokens, types, strict=True)
            if number in (_CONTROL, _USER_DEFINED)
        ]
    )
    return Tokenizer(inner)


_PRE = ("smollm",)
"""Pre-tokenizers implemented: digits one by one, then GPT-2's byte-level split (llama-vocab.cpp,
``LLAMA_VOCAB_PRE_TYPE_SMOLLM``)."""
