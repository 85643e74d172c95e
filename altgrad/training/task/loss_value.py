"""Reads the loss, and metrics beside it, from what a model or a task returned for a batch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from altgrad.config.train_config import ConfigError
from altgrad.metrics import METRICS
from altgrad.text.error_hints import kind, shown

_OURS = METRICS.keys() | {"step"}  # names in a step's record
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


def read_loss(found: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    """(the loss (0-d), metrics by name (0-d each)).  Where gradients are computed the loss must have one.

    Taken are a loss, (loss, metrics), a tuple with one 0-d tensor such as (logits, loss), and an object or dict with
    `loss`.  Raises ConfigError for anything else.
    """
    if isinstance(found, Tensor):
        return _scalar(found), {}
    if isinstance(found, tuple | list):
        if len(found) == 2 and isinstance(found[0], Tensor) and isinstance(found[1], dict):
            return _scalar(found[0]), {name: _metric(name, value, found[0]) for name, value in found[1].items()}
        scalars = [one for one in found if isinstance(one, Tensor) and one.ndim == 0 and one.is_floating_point()]
        if len(scalars) == 1:
            return _scalar(scalars[0]), {}
        raise ConfigError(
            f"the model returned {len(found)} values with {len(scalars)} losses (0-d) among them; return the loss, "
            "(logits, loss), (loss, metrics), or an object with `loss`"
        )
    for loss in (found.get("loss") if isinstance(found, Mapping) else None, getattr(found, "loss", None)):
        if isinstance(loss, Tensor):
            return _scalar(loss), {}
    raise ConfigError(
        f"the model returned {kind(found)} without a loss; return the loss (0-d), (logits, loss), or an "
        "object with `loss` (a model of transformers needs labels in the batch)"
    )


def _scalar(loss: Tensor) -> Tensor:
    if loss.ndim or not loss.is_floating_point():
        found = f"the shape {tuple(loss.shape)} and dtype {loss.dtype}"
        raise ConfigError(f"the loss has {found}; return its mean, a 0-d float")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ConfigError(
            "the loss has no gradient: it does not depend on a trained parameter, or was computed under "
            "torch.no_grad() or detached"
        )
    return loss


def _metric(name: Any, value: Any, loss: Tensor) -> Tensor:
    """A metric as a 0-d tensor on the loss's device."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _OURS or name.startswith("validation_"):
        raise ConfigError(
            f"the metric {shown(name)}: give a name of letters, digits and _ that is none of ours (see docs/method.md) "
            "and does not begin with validation_"
        )
    if isinstance(value, bool | int | float | np.number):
        return torch.full((), float(value), dtype=torch.float32, device=loss.device)  # a copy would synchronise
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind(value)
        raise ConfigError(f"the metric {name} is {what}; give one real number, or a tensor that holds one")
    return value.detach().reshape(()).to(loss.device)
