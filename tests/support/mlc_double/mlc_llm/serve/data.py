"""What serve/data.py gives and takes."""

from dataclasses import dataclass


class TokenData:
    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = list(token_ids)


@dataclass
class SingleRequestStreamOutput:
    delta_token_ids: list[int]
    delta_logprob_json_strs: list[str] | None
    finish_reason: str | None
    request_final_usage_json_str: str | None
    extra_prefix_string: str


class RequestStreamOutput:
    """Made by the engine only; ``unpack()`` as the real one's."""

    def __init__(self, request_id: str, output: SingleRequestStreamOutput) -> None:
        self._fields = (request_id, [output])

    def unpack(self) -> tuple[str, list[SingleRequestStreamOutput]]:
        return self._fields
