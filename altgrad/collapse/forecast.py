"""A warning before a collapse: the updates do not reach the weights any more.

It is no verdict: it stops nobody and changes nothing in the run.  In the benchmark (`python -m bench.detectors`,
docs/results/detectors.md) it announces stalls, and few other collapses: a fifth.  `gradient_below_stiffness` and
`gradient_stiffness_ratio` announce more, but are measured only where `log_stiffness` asks for them.
Unlike the share of stalled weights it is low neither with FP32 master weights nor under stochastic rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from altgrad.config.train_config import TrainConfig
from altgrad.metrics import METRICS
from altgrad.text.number_text import number

METRIC = METRICS["realised_displacement"]
LIMIT = 0.08  # the one that the benchmark chose on its tune split


@dataclass(frozen=True)
class Warned:
    """The first measurement below the limit."""

    step: int
    value: float

    def sentence(self) -> str:
        """`warning at step 120: realised displacement 0.02, below 0.08`."""
        label = METRIC.label[0].lower() + METRIC.label[1:]
        return f"warning at step {self.step}: {label} {number(self.value)}, below {number(LIMIT)}"


class CollapseForecast:
    """Warns once in a run, at the first measurement below the limit after warm-up, whose small updates stall first."""

    def __init__(self, config: TrainConfig) -> None:
        self._warmup = config.warmup_steps
        self.warned: Warned | None = None

    def update(self, record: Mapping[str, float]) -> Warned | None:
        """Take in the record of a step.  Returns the warning at the step at which it is given, else None."""
        value, step = record.get(METRIC.name), int(record["step"])
        if self.warned is not None or value is None or step <= self._warmup or not value < LIMIT:
            return None
        self.warned = Warned(step, value)
        return self.warned

    def state_dict(self) -> dict[str, Any]:
        """The state on which later warnings depend, as JSON values."""
        return {"warned": None if self.warned is None else asdict(self.warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self.warned = None if state["warned"] is None else Warned(**state["warned"])
