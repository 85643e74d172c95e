"""The gap of a run: its smoothed loss minus the smoothed loss of its baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from altgrad.collapse.course import USUAL_CAP, LossCourse


class BaselineGap:
    """Computes the gap of a run to its baseline, step by step.

    `baseline` maps step -> training loss and may still grow while the run trains.  Both curves are smoothed in the same
    way over the steps that both report, so a run with exactly the losses of the baseline has a gap of exactly 0.  Over
    other steps the one that reports rarely would lag behind: of a loss that falls, a run that reports every step seems
    0.3 nats ahead of a baseline with the same losses at every tenth step.
    `pace`, `cap`: see `LossCourse`.
    """

    def __init__(self, baseline: Mapping[int, float], pace: float = 1.0, cap: float | None = USUAL_CAP) -> None:
        self._baseline = baseline
        self._own = LossCourse(pace, cap)
        self._other = LossCourse(pace, cap)
        self._step: int | None = None
        # steps of the run, with its losses, that the baseline has not or not yet; the loss None was smoothed before,
        # by an earlier version
        self._pending: list[tuple[int, float | None]] = []

    def update(self, step: int, loss: float) -> float | None:
        """Add a step's loss.  Returns smoothed loss minus smoothed baseline at this step, in units of the loss.

        None if the baseline does not have this step (yet), if one of the two losses is not finite, or if the step is
        not later than the last one.
        """
        if self._step is not None and step <= self._step:
            return None
        self._step = step
        self._pending.append((step, loss))
        if step not in self._baseline:
            return None
        for earlier, own_loss in self._pending:
            if earlier in self._baseline:
                if own_loss is not None:
                    self._own.update(earlier, own_loss)
                self._other.update(earlier, self._baseline[earlier])
        self._pending = []
        own, other = self._own.smoothed.value, self._other.smoothed.value
        if own is None or other is None or not math.isfinite(loss) or not math.isfinite(self._baseline[step]):
            return None
        return own - other

    def state_dict(self) -> dict[str, Any]:
        """The state on which later gaps depend besides the baseline, as strict JSON."""
        return {
            "own": self._own.state_dict(),
            "other": self._other.state_dict(),
            "step": self._step,
            "pending": [[step, None if loss is None else repr(loss)] for step, loss in self._pending],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._own.load_state_dict(state["own"])
        self._other.load_state_dict(state["other"])
        self._step = state["step"]
        pairs = [one if isinstance(one, list) else [one, None] for one in state["pending"]]
        self._pending = [(step, None if loss is None else float(loss)) for step, loss in pairs]
