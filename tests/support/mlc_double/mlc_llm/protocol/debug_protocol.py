"""Fields of protocol/debug_protocol.py."""

from dataclasses import dataclass


@dataclass
class DebugConfig:
    ignore_eos: bool = False
    pinned_system_prompt: bool = False
    special_request: str | None = None
    grammar_execution_mode: str = "jump_forward"
    disagg_config: dict | None = None
