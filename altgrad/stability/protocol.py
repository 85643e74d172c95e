"""The protocol of interventions, and the state of a step that they get.

An intervention acts between backward and `optimizer.step`, because a later change would not affect the step.  It
records each act as an event, and decides on numbers that were measured in this step, never on defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from altgrad.events import Event
from altgrad.metrics import RESCUE_ACTS


@dataclass
class StepState:
    """One training step between backward and the optimizer step.

    `measured`: the step's metrics by name, in `after_step` also those of the diagnostics; a metric that was not
    measured is missing.  `gradient_overflow`: overflow rate of the `gradient` operands alone; None if none was rounded.
    `norm`: the gradient norm as a tensor (0-d) on the device.  `skip`: set it to omit the optimizer step.
    """

    step: int
    loss: float
    gradient_norm: float
    parameters: Sequence[nn.Parameter]
    measured: dict[str, float]
    norm: Tensor
    gradient_overflow: float | None = None
    skip: bool = False
    events: list[Event] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are finite numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    def event(self, kind: str, **detail: Any) -> None:
        """Add an event of a registered kind at this step."""
        self.events.append(Event(self.step, kind, detail))

    def rescued(self) -> None:
        """Note an act after which the run is another one, at most once per act: the collapse rules count anew.

        So does who changes weights, rate or formats a bounded number of times, not who leaves out or clips a step, and
        not the guard, which may restore its snapshot for ever: a run that only repeats its steps must be judged.
        """
        self.measured[RESCUE_ACTS] = self.measured.get(RESCUE_ACTS, 0.0) + 1.0

    def limit_norm(self, limit: float) -> None:
        """Scale all gradients down to a norm of `limit` if theirs is larger; both norms are updated.

        The factor is torch's own, limit / (norm + 1e-6), so that a run clips bit for bit as a plain training loop does.
        If torch would multiply by 1, nothing is done.
        """
        if self.gradient_norm * (1 + 1e-6) + 2e-6 < limit:  # the factor is 1, also after float32 rounding of the norm
            return
        torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, self.norm)
        self.norm = self.norm * (limit / (self.norm + 1e-6)).clamp(max=1.0)
        self.gradient_norm *= min(1.0, limit / (self.gradient_norm + 1e-6))


class Intervention(Protocol):
    """Acts on a step's gradients, or after the step on the measurements around it."""

    def on_gradients(self, state: StepState) -> None:
        """Called between backward and the optimizer step; may change gradients, formats or `state.skip`."""

    def after_step(self, state: StepState) -> None:
        """Called after the optimizer step and its measurements; may change formats and weights."""

    def state_dict(self) -> dict[str, Any]:
        """The state on which later acts depend; tensors and numbers only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
