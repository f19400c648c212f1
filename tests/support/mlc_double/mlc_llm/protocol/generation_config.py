"""Fields of protocol/generation_config.py; the real one is a pydantic model."""

import json
from dataclasses import asdict, dataclass

from .debug_protocol import DebugConfig


@dataclass
class GenerationConfig:
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: dict[int, float] | None = None
    max_tokens: int = -1
    seed: int | None = None
    stop_strs: list[str] | None = None
    stop_token_ids: list[int] | None = None
    response_format: dict | None = None
    debug_config: DebugConfig | None = None

    def model_dump_json(self, by_alias: bool) -> str:
        return json.dumps(asdict(self))
