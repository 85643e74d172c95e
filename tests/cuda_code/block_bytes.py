"""`python -m tests.cuda_code.block_bytes FOLDER NAME ...`: bytes and launches of one transformer block on a GPU.

It is a block of `medium` (width 512) with 16 x 512 tokens, forward and backward, in bfloat16 autocast.  The bytes are
Inductor's count of the buffers that each kernel, GEMM and attention reads and writes; launches are those of generated
kernels.  Prints one line of JSON: case -> [bytes, launches].
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._functorch import config as functorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.kernel import scaled_rounding
from altgrad.quantization.kernel.compiled import inductor_options
from altgrad.quantization.kernel.round import SPEC_LENGTH
from altgrad.quantization.quantize import quantize_model
from altgrad.training.model import Block
from tests.cuda_code.pretended_gpu import Found, Generated, pretend

# Fields of a config, and whether every rounding is counted; without fields the plain block in BF16 autocast.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "bf16": ({}, False),
    "tensor": ({"format": "E4M3"}, False),
    "tensor, counts": ({"format": "E4M3"}, True),
    "delayed": ({"format": "E4M3", "scaling": "delayed"}, True),
    "mxfp8": ({"recipe": "mxfp8"}, False),
    "te_current": ({"recipe": "te_current"}, False),  # real scales
}
_BATCH, _TOKENS, _WIDTH = 16, 512, 512


def block_bytes(found: list[Found], fields: dict[str, Any], counting: bool) -> tuple[int, int]:
    """Bytes and launches of the forward and the backward graph; `found`: see `pretend`."""
    found.clear()
    torch._dynamo.reset()
    settings = TrainConfig(model="medium", **fields)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            block = Block(settings.shape)
        if fields:
            with patch.object(torch, "tensor", _tensor):
                layers = quantize_model(block, settings, counting=counting).layers
            for site in (site for layer in layers.values() for site in layer.sites.values() if site.delayed):
                site.note_filled(True)  # every step but the first
        x = torch.empty(_BATCH, _TOKENS, _WIDTH, device="cuda", requires_grad=True)
        compiled = torch.compile(block, dynamic=False, options=inductor_options(x.device) if fields else None)
        with torch.autocast("cuda", torch.bfloat16), suppress(Generated):
            compiled(x)
    assert len(found) == 2
    return sum(graph.moved for graph in found), sum(graph.launches for graph in found)


def _attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """Flash attention, which a CPU build of torch would not choose."""
    y: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
    return y


def _spec(*given: Any, **named: Any) -> Tensor:
    """In place of `spec_of`: a fake tensor has no values that could be read as bits."""
    return torch.empty(SPEC_LENGTH, dtype=torch.int32, device="cuda")


def _tensor(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """In place of `torch.tensor`, which makes no fake tensors of a GPU that is not there."""
    return torch.empty(len(values), dtype=dtype, device=device)


if __name__ == "__main__":
    functional.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    scaled_rounding.spec_of = _spec
    functorch.force_non_lazy_backward_lowering = True
    graphs = pretend()
    print(json.dumps({name: block_bytes(graphs, *CASES[name]) for name in sys.argv[2:]}))
