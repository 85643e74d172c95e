"""ECO: adds the rounding error of a write-back to the optimizer's momentum, which returns it in later steps.

ECO (arXiv 2601.22101), algorithms 2 (SGD with momentum) and 3 (Adam).  With w the weight after the optimizer step, Q(w)
the stored weight, e = w - Q(w), learning rate h and t steps so far:

    Adam: m += (1 - b1^t) / h x (1 - 1/b1) x (sqrt(v / (1 - b2^t)) + eps) x e        SGD: m += 1/h x (1 - 1/b) x e

Over all later steps the added momentum moves the weight by e.  SGD with h = 0.1, b = 0.9, e = 0.01: m changes by
-0.0111, and the weight by 0.1 x 0.0111 x (0.9 + 0.9^2 + ...) = 0.01.  An exact compensation would also need the error
of the last step (m += (e_last - e/b) / h); the rule assumes that it equals this one, and so needs no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from altgrad.quantization.gemms.sharded import own_part


class Feedback:
    """Adds errors to the momenta of an optimizer.  Raises ValueError for an optimizer without momentum."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for group in optimizer.param_groups:
            _check(optimizer, group)

    def takes(self, parameter: Tensor) -> bool:
        """Whether the parameter is one of this optimizer's."""
        return parameter in self._groups

    def add(self, parameter: Tensor, error: Tensor) -> None:
        """Add the error (shaped like the parameter) to its momentum; nothing, if it has not been updated yet.

        Of a parameter that is divided among processes, the error of this process's part.
        """
        group, state = self._groups.get(parameter), self._optimizer.state.get(parameter)
        if group is None or not state:
            return
        rate = group["lr"]
        if not torch.is_tensor(rate) and rate == 0:  # the optimizer step changed nothing
            return
        if "exp_avg" in state:
            (beta1, beta2), step = group["betas"], state["step"]
            square = own_part(state.get("max_exp_avg_sq", state["exp_avg_sq"]))
            denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
            error = error * denominator.mul_((1 - beta1**step) * (1 - 1 / beta1) / rate)
            own_part(state["exp_avg"]).add_(error)
        else:
            beta = group["momentum"]
            own_part(state["momentum_buffer"]).add_(error * ((1 - 1 / beta) / rate))


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
