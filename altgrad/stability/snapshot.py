"""A copy of weights, optimizer moments and what depends on them, in memory, to which a run can go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Taken when it is made, and again by `take`; `step`: the step at whose end it was taken.

    companions: tensors that depend on earlier weights and are restored with them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, companions: Sequence[Tensor] = (), step: int = 0) -> None:
        self._optimizer = optimizer
        self.parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._companions = companions
        self.take(step)

    def moments(self) -> list[dict[str, Any]]:
        """The optimizer's present state of each parameter; empty before its first step."""
        return [self._optimizer.state.get(parameter, {}) for parameter in self.parameters]

    def take(self, step: int) -> None:
        """Copy everything as it is now, at the end of `step`."""
        self.step = step
        self._kept_parameters = [parameter.detach().clone() for parameter in self.parameters]
        self._kept_companions = [companion.clone() for companion in self._companions]
        self._kept_moments = [
            {key: value.clone() if torch.is_tensor(value) else value for key, value in moments.items()}
            for moments in self.moments()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back to how it was copied."""
        for parameter, kept, moments in zip(self.parameters, self._kept_parameters, self._kept_moments, strict=True):
            parameter.copy_(kept)
            self._optimizer.state[parameter] = {
                key: value.clone() if torch.is_tensor(value) else value for key, value in moments.items()
            }
        for companion, kept in zip(self._companions, self._kept_companions, strict=True):
            companion.copy_(kept)
        for parameter, moments in zip(self.parameters, self._kept_moments, strict=True):
            if not moments:
                del self._optimizer.state[parameter]

    def state_dict(self) -> dict[str, Any]:
        """The copies."""
        return {
            "step": self.step,
            "parameters": self._kept_parameters,
            "companions": self._kept_companions,
            "moments": self._kept_moments,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the copies of a `state_dict`.  Raises ValueError if it is of another model."""
        self.step = state["step"]
        self._kept_parameters = _like(self.parameters, state["parameters"])
        self._kept_companions = _like(self._companions, state["companions"])
        self._kept_moments = [
            {key: value.to(parameter.device) if torch.is_tensor(value) else value for key, value in moments.items()}
            for parameter, moments in zip(self.parameters, state["moments"], strict=True)
        ]


def _like(tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
    """The kept copies, each moved to the device of its original."""
    return [copy.to(tensor.device) for tensor, copy in zip(tensors, kept, strict=True)]
