"""The one protocol of interventions, and the step as they see it.

An intervention acts between backward and `optimizer.step`, because a step is over once the optimizer has moved; what
it does it says in an event.  It decides on measured numbers of this very step, never on defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from altgrad.events import Event


@dataclass
class StepState:
    """One training step between backward and the optimizer step.

    `measured` holds the step's metrics by name, with the diagnostics' once they are there (`after_step`); a metric
    that was not measured is missing.  `skip` keeps the optimizer from moving.
    """

    step: int
    loss: float
    gradient_norm: float
    parameters: Sequence[nn.Parameter]
    measured: dict[str, float]
    skip: bool = False
    events: list[Event] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are finite numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    def event(self, kind: str, **detail: Any) -> None:
        self.events.append(Event(self.step, kind, detail))

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients; `gradient_norm` follows."""
        torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        self.gradient_norm *= factor


class Intervention(Protocol):
    """Acts on a step's gradients, or after the step on what was measured around it."""

    def on_gradients(self, state: StepState) -> None: ...

    def after_step(self, state: StepState) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
