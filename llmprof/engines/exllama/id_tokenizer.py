"""What the ExLlama generators ask of a tokenizer when prompt and limits are token ids."""

from __future__ import annotations

from typing import Any


class IdTokenizer:
    """Every id spells one letter; text is made because the generators insist, nobody reads it.

    Duck-typed after ``ExLlamaTokenizer``, ``ExLlamaV2Tokenizer`` and exllamav3's ``Tokenizer``.
    """

    def __init__(self, vocab_size: int, ids: dict[str, int], config: Any = None) -> None:
        """``ids`` holds ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``."""
        self.actual_vocab_size = vocab_size
        self.bos_token_id = ids["bos_token_id"]
        self.eos_token_id = ids["eos_token_id"]
        self.pad_token_id = ids["pad_token_id"]
        self.unk_token_id = ids["pad_token_id"]
        self.config = config
        self.extended_id_to_piece: dict[int, str] = {}
        # Logits may be padded beyond the vocabulary.
        self._pieces = ["a"] * (-(-vocab_size // 128) * 128)

    def get_vocab_size(self) -> int:
        return self.actual_vocab_size

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:
        return self._pieces

    def decode(self, ids: Any, **options: Any) -> list[str]:
        return ["a" * int(ids.numel())]


def token_ids(raw: Any, vocab_size: int) -> dict[str, int]:
    """bos, eos and pad of a ``config.json``, with Llama 2's where it has none."""
    found = {}
    for key, default in (("bos_token_id", 1), ("eos_token_id", 2), ("pad_token_id", 0)):
        value = raw.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        valid = type(value) is int and 0 <= value < vocab_size
        found[key] = value if valid else default
    return found
