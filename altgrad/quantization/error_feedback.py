"""ECO: the rounding error of a write-back is fed into the optimizer's momentum, which gives it back later.

ECO (arXiv 2601.22101), algorithms 2 (SGD with momentum) and 3 (Adam).  With w the weight as the optimizer left it, Q(w)
what is stored, e = w - Q(w), learning rate h and t steps so far:

    Adam: m += (1 - b1^t) / h x (1 - 1/b1) x (sqrt(v / (1 - b2^t)) + eps) x e        SGD: m += 1/h x (1 - 1/b) x e

An exact compensation would need the last step's error as well (m += (e_last - e/b) / h); the rule takes it for equal to
this one's, so that no memory is needed.  What is added moves the weight by e in all over the steps to come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


class Feedback:
    """The momenta of an optimizer's parameters, to be fed errors.  Raises ValueError for an optimizer that has none."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for group in optimizer.param_groups:
            _check(optimizer, group)

    def add(self, parameter: Tensor, error: Tensor) -> None:
        """Feed the error of one parameter; one that has not moved yet has no momentum and no error."""
        group, state = self._groups.get(parameter), self._optimizer.state.get(parameter)
        if group is None or not state:
            return
        rate = group["lr"]
        if not torch.is_tensor(rate) and rate == 0:  # nothing has moved
            return
        if "exp_avg" in state:
            (beta1, beta2), step = group["betas"], state["step"]
            square = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
            error = error * denominator.mul_((1 - beta1**step) * (1 - 1 / beta1) / rate)
            state["exp_avg"].add_(error)
        else:
            beta = group["momentum"]
            state["momentum_buffer"].add_(error * ((1 - 1 / beta) / rate))


def _check(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    if isinstance(optimizer, Adam | AdamW):
        ready = group["betas"][0] > 0
    else:
        ready = isinstance(optimizer, SGD) and group["momentum"] > 0 and not group["nesterov"]
    if not ready:
        raise ValueError(
            f"update_rounding='eco': {type(optimizer).__name__} as it is set up has no momentum that could take the "
            "error; use Adam or AdamW with beta1 above 0, or SGD with momentum and without nesterov"
        )
