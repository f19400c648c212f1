"""Torch's choice of attention: asked of torch, switched off for all engines on it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from llmprof.engines.base import LoadRequest
from llmprof.engines.pytorch.attention import planned
from llmprof.engines.registry import create

torch = pytest.importorskip("torch")


def test_torch_is_asked_about_a_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tensors of one on a device that there is: a CPU never plans."""
    asked = []
    cudnn = torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value
    device = SimpleNamespace(type="cuda")
    stand_in = SimpleNamespace(
        device=lambda name: device,
        empty=lambda *shape, device, dtype: torch.empty(*shape, dtype=dtype),
        _fused_sdp_choice=lambda q, k, v: asked.append((q.shape, k.shape)) or cudnn,
    )
    assert planned(stand_in, "cuda:0", torch.float16, 8, 4, 64)
    assert asked == [((1, 8, 4, 64), (1, 8, 129, 64))]
    stand_in._fused_sdp_choice = lambda q, k, v: cudnn - 1
    assert not planned(stand_in, "cuda:0", torch.float16, 8, 4, 64)
    assert not planned(torch, "cpu", torch.float32, 8, 4, 64)


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_cudnn_is_left_out_of_this_process_only(name: str) -> None:
    if name == "transformers":
        pytest.importorskip("transformers")
    program = f"""
import torch
from llmprof.engines.base import LoadRequest
from llmprof.engines.registry import create
before = torch.backends.cuda.cudnn_sdp_enabled()
engine = create({name!r})
options = {{"device": "cpu", "cudnn_attention": "0"}}
if {name!r} == "transformers":
    options["drive"] = "forward"
engine.load(LoadRequest("tiny", options, 1, 16), lambda what, share: None)
print(before, torch.backends.cuda.cudnn_sdp_enabled(), repr(engine.describe().warmup_lengths))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True False ''", done.stderr
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_option_is_checked() -> None:
    with pytest.raises(Exception, match="cudnn_attention=perhaps: expected 1 or 0"):
        create("torch").load(
            LoadRequest("tiny", {"device": "cpu", "cudnn_attention": "perhaps"}, 1, 16),
            lambda what, share: None,
        )
