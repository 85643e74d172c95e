"""A training step as an intervention sees it, made by hand."""

from __future__ import annotations

import torch
import torch._dynamo  # the first step of an optimizer does, for seconds: in each process that is forked before it
from torch import nn

from altgrad.stability.protocol import StepState


def state_of(
    step: int,
    loss: float = 1.0,
    norm: float = 1.0,
    parameters: list[nn.Parameter] | None = None,
    gradient_overflow: float | None = None,
    **measured: float,
) -> StepState:
    return StepState(step, loss, norm, parameters or [], dict(measured), torch.tensor(norm), gradient_overflow)
