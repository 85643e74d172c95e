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
from altgrad.stability.snapshot import Snapshot


class NonFiniteGuard:
    """Skips steps with a non-finite loss or gradient; restores the last snapshot if weights or moments are not finite.

    Every `interval` steps parameters and optimizer state are checked and copied in memory.  The snapshot is part of the
    guard's state, so that a restored run rolls back to the same point as an undisturbed one.
    `companions`: tensors that depend on earlier weights (amax histories, running statistics) and are restored with
    them; those that are finite at the start must stay finite.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, interval: int, companions: Sequence[Tensor] = ()) -> None:
        self._interval = interval
        self._companions = companions
        # a companion that is not finite at the start (an attention mask of -inf) is meant to be so
        self._never_finite = ~_finite(companions) if companions else None
        self._snapshot = Snapshot(optimizer, companions)

    def on_gradients(self, state: StepState) -> None:
        """Skip a step that is not finite, as a `skip` event; restore the snapshot if weights are not finite either."""
        if state.finite:
            return
        state.skip = True
        state.event("skip", loss=number_or_name(state.loss), gradient_norm=number_or_name(state.gradient_norm))
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
        return self._snapshot.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the snapshot of a state of `state_dict`.  Raises ValueError if it is of another model."""
        self._snapshot.load_state_dict(state)

    def take(self, step: int) -> None:
        """Take the snapshot now, at the end of `step`."""
        self._snapshot.take(step)

    def _good(self) -> bool:
        tensors = [
            *self._snapshot.parameters,
            *(t for moments in self._snapshot.moments() for t in moments.values() if torch.is_tensor(t)),
        ]
        floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        good = _finite(floats).all()
        if self._never_finite is not None:
            good = good & (_finite(self._companions) | self._never_finite).all()
        return bool(good)

    def _restore(self, state: StepState) -> None:
        self._snapshot.restore()
        state.event("rollback", to_step=self._snapshot.step)


def _finite(tensors: Sequence[Tensor]) -> Tensor:
    """Which of the n >= 1 tensors hold only finite numbers, (n,) bool on the device, without synchronisation."""
    return torch.stack([torch.isfinite(norm) for norm in torch_private.largest_magnitudes(tensors)])


def number_or_name(value: float) -> float | str:
    """The value, or for NaN and inf, which JSON lacks, their name."""
    return value if value == value and abs(value) != float("inf") else str(value)
