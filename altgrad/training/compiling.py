"""Whether and how the forward and backward pass is compiled."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from altgrad.training.config import TrainConfig

_said: set[str] = set()


def compiled_loss(model: nn.Module, config: TrainConfig, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`model`'s loss as a compiled function, or the model itself where compiling does not pay.

    `compile: true` raises RuntimeError where there is no C++ compiler; `auto` falls back and says so once.
    """
    if config.compile is False or (config.compile == "auto" and not _pays(config, device)):
        return model
    if device.type == "cpu" and shutil.which("c++") is None and shutil.which("g++") is None:
        message = "no C++ compiler found (c++, g++)"
        if config.compile is True:
            raise RuntimeError(f"compile=true: {message}; install one or use compile=auto")
        if message not in _said:
            _said.add(message)
            warnings.warn(f"compile=auto: {message}; running eagerly", stacklevel=2)
        return model
    return cast("Callable[[Tensor, Tensor], Tensor]", torch.compile(model, dynamic=False))


def _pays(config: TrainConfig, device: torch.device) -> bool:
    """A compile costs 3 to 30 s; short runs are over sooner without."""
    return device.type == "cuda" or config.max_steps >= 2000
