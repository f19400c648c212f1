"""Which attention torch takes for a decode step. torch is handed in, not imported.

On Hopper and Blackwell torch (2.9 and newer, with a cuDNN that can) prefers cuDNN's attention. That
makes a plan for each shape at its first use and keeps it for the life of the process: 43 ms of the
host on an H100 (a call with a plan: 0.03 ms), and every decode step has a KV length of its own.
"""

from __future__ import annotations

from typing import Any

PLANNED = (
    "torch takes cuDNN's attention, which makes a plan at the first use of each number of KV"
    " positions; cudnn_attention=0 leaves it out"
)
_CUDNN = 3
"""``torch.nn.attention.SDPBackend.CUDNN_ATTENTION``."""
_LENGTH = 129
"""KV positions that torch is asked about: odd, as most are."""


def leave_cudnn_out(torch: Any) -> None:
    """From here on no SDPA of this process takes cuDNN."""
    switch = getattr(torch.backends.cuda, "enable_cudnn_sdp", None)  # torch 2.5 and newer
    if switch is not None:
        switch(False)


def planned(torch: Any, device: Any, dtype: Any, heads: int, rows: int, head_dim: int) -> bool:
    """Does a decode step's SDPA make a plan for each KV length?

    Torch itself is asked, with empty tensors of such a step.

    Args:
        heads: of K and V as they go into SDPA.
        rows: of the query.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    if torch.device(device).type != "cuda" or choose is None:
        return False
    query = torch.empty(1, heads, rows, head_dim, device=device, dtype=dtype)
    cached = torch.empty(1, _LENGTH, heads, head_dim, device=device, dtype=dtype).transpose(1, 2)
    return int(choose(query, cached, cached)) == _CUDNN
