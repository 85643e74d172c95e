"""Keeps NaN and inf out of the weights and the optimizer's moments, and restores a snapshot if they are there anyway.

On a good step the check costs nothing: it reads the loss and the gradient norm, which are computed anyway.  Weights and
moments are checked only if one of these is not finite, and before a snapshot is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad import torch_private
from altgrad.stability.protocol import StepState


class NonFiniteGuard:
    """Skips steps with a non-finite loss or gradient; restores the last snapshot if weights or moments are not finite.

    Every `interval` steps parameters and optimizer state are checked and copied in memory.  The snapshot is part of the
    guard's state, so that a restored run rolls back to the same point as an undisturbed one.
    `companions`: tensors that depend on earlier weights (amax histories, running statistics) and are restored with
    them; those that are finite at the start must stay finite.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, interval: int, companions: Sequence[Tensor] = ()) -> None:
        self._optimizer = optimizer
        self._interval = interval
        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._companions = companions
        # a companion that is not finite at the start (an attention mask of -inf) is meant to be so
        self._never_finite = ~_finite(companions) if companions else None
        self.take(step=0)

    def on_gradients(self, state: StepState) -> None:
        """Skip a step that is not finite, as a `skip` event; restore the snapshot if weights are not finite either."""
        if state.finite:
            return
        state.skip = True
        state.event("skip", loss=_word(state.loss), gradient_norm=_word(state.gradient_norm))
        if not self._good():
            self._restore(state)

    def after_step(self, state: StepState) -> None:
        """Every `interval` steps take a snapshot, or restore the last one if a weight or moment is not finite."""
        if state.skip or state.step % self._interval:
            return
        if self._good():
            self.take(state.step)
        else:  # loss and gradients were finite, so this batch did not use the weight (a rare token's embedding)
            self._restore(state)

    def state_dict(self) -> dict[str, Any]:
        """The snapshot."""
        return {
            "step": self._step,
            "parameters": self._kept_parameters,
            "companions": self._kept_companions,
            "moments": self._kept_moments,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the snapshot of a state of `state_dict`.  Raises ValueError if it is of another model."""
        self._step = state["step"]
        self._kept_parameters = _like(self._parameters, state["parameters"])
        self._kept_companions = _like(self._companions, state["companions"])
        self._kept_moments = [
            {key: value.to(parameter.device) if torch.is_tensor(value) else value for key, value in moments.items()}
            for parameter, moments in zip(self._parameters, state["moments"], strict=True)
        ]

    def _moments(self) -> list[dict[str, Any]]:
        return [self._optimizer.state.get(parameter, {}) for parameter in self._parameters]

    def _good(self) -> bool:
        tensors = [
            *self._parameters,
            *(t for moments in self._moments() for t in moments.values() if torch.is_tensor(t)),
        ]
        floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        good = _finite(floats).all()
        if self._never_finite is not None:
            good = good & (_finite(self._companions) | self._never_finite).all()
        return bool(good)

    def take(self, step: int) -> None:
        """Take the snapshot now, at the end of `step`."""
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


def _finite(tensors: Sequence[Tensor]) -> Tensor:
    """Which of the n >= 1 tensors hold only finite numbers, (n,) bool on the device, without synchronisation."""
    return torch.stack([torch.isfinite(norm) for norm in torch_private.largest_magnitudes(tensors)])


def _like(tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
    """The kept copies, each moved to the device of its original."""
    return [copy.to(tensor.device) for tensor, copy in zip(tensors, kept, strict=True)]


def _word(value: float) -> float | str:
    """The value, or for NaN and inf, which JSON lacks, their name."""
    return value if value == value and abs(value) != float("inf") else str(value)
