"""A NaN or inf must never reach the weights or the optimizer's moments; if one is there all the same, go back.

The check costs nothing on a good step: it reads the gradient norm, which is needed anyway, and looks at weights and
moments only when that is not finite, and before it takes a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.stability.protocol import StepState


class NonFiniteGuard:
    """Skips steps with a non-finite loss or gradient; restores the last good snapshot of poisoned weights or moments.

    A snapshot of parameters and optimizer state is taken every `interval` steps, in memory, once checked.
    `companions`: tensors that tell of the weights' past and go back with them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, interval: int, companions: Sequence[Tensor] = ()) -> None:
        self._optimizer = optimizer
        self._interval = interval
        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._companions = companions
        self._take(step=0)

    def on_gradients(self, state: StepState) -> None:
        if state.finite:
            return
        state.skip = True
        state.event("skip", loss=_word(state.loss), gradient_norm=_word(state.gradient_norm))
        if not self._good():
            self._restore(state)

    def after_step(self, state: StepState) -> None:
        if state.skip or state.step % self._interval:
            return
        if self._good():
            self._take(state.step)
        else:  # a weight that this batch did not use, such as a rare token's embedding
            self._restore(state)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: after a restart the restored weights are the last good ones."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._take(step=0)

    def _moments(self) -> list[dict[str, Any]]:
        return [self._optimizer.state.get(parameter, {}) for parameter in self._parameters]

    def _good(self) -> bool:
        tensors = [
            *self._parameters,
            *(t for moments in self._moments() for t in moments.values() if torch.is_tensor(t)),
        ]
        floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        return bool(torch.stack([torch.isfinite(norm) for norm in torch._foreach_norm(floats, torch.inf)]).all())

    def _take(self, step: int) -> None:
        self._step = step
        self._kept_parameters = [parameter.detach().clone() for parameter in self._parameters]
        self._kept_companions = [companion.clone() for companion in self._companions]
        self._kept_moments = [
            {key: value.clone() if torch.is_tensor(value) else value for key, value in moments.items()}
            for moments in self._moments()
        ]

    @torch.no_grad()
    def _restore(self, state: StepState) -> None:
        for parameter, kept, moments in zip(self._parameters, self._kept_parameters, self._kept_moments, strict=True):
            parameter.copy_(kept)
            self._optimizer.state[parameter] = {
                key: value.clone() if torch.is_tensor(value) else value for key, value in moments.items()
            }
        for companion, kept in zip(self._companions, self._kept_companions, strict=True):
            companion.copy_(kept)
        for parameter, moments in zip(self._parameters, self._kept_moments, strict=True):
            if not moments:
                del self._optimizer.state[parameter]
        state.event("rollback", to_step=self._step)


def _word(value: float) -> float | str:
    """JSON has no NaN or inf: as words."""
    return value if value == value and abs(value) != float("inf") else str(value)
