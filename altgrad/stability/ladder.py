"""The rescue ladder: acts of growing strength against a loss that has left its best value, in order, with a budget.

    skip       leave out the optimizer step of a batch whose loss is bad
    rate       cut the learning rate to a tenth, and warm up again
    rollback   go back to the last healthy weights; the batches since then are not trained again
    shift      replace the format of every scaled site by another one for good

A step is in trouble if its loss or gradient is not finite, or its loss lies more than `rescue_margin` above the best
smoothed loss so far.  The first act comes with the first such step.  If the run is still in trouble `rescue_window`
steps after an act, the next rung acts, from the last rung on that one again; after as many steps without trouble the
ladder is back at its first rung.  When the budget is spent, nothing acts any more, and the collapse rules decide.

Example, a window of 10 and all four rungs: the loss jumps at step 100 and stays up.  Step 100 is skipped, and so is
each bad batch until step 109; at step 110 the rate is cut, at step 120 the run goes back to its snapshot of step 90.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.collapse.smoothing import Smoothed
from altgrad.config.train_config import TrainConfig
from altgrad.formats import find_format
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.stored.write_back import WriteBack
from altgrad.stability.guard import number_or_name
from altgrad.stability.protocol import StepState
from altgrad.stability.snapshot import Snapshot

_CUT = 0.1  # share of the learning rate right after a cut
_WARM_WINDOWS = 5  # windows in which the rate comes back
_SETTLED = 5  # steps before a smoothed loss counts as the best


class RescueLadder:
    """Acts on a run in trouble, see the module.  `companions`: see `Snapshot`."""

    def __init__(
        self,
        config: TrainConfig,
        layers: Mapping[str, RoundedGemm],
        optimizer: torch.optim.Optimizer,
        write_back: WriteBack | None = None,
        companions: Sequence[Tensor] = (),
    ) -> None:
        self._config = config
        self._layers = layers
        self._optimizer = optimizer
        self._write_back = write_back
        self._healthy = Snapshot(optimizer, companions)
        self._smoothed = Smoothed()
        self._seen = 0  # finite losses so far
        self._best: float | None = None
        self._rung: int | None = None  # the rung that acted last; None: at the foot
        self._acted = self._troubled = self._cut = 0  # steps of the last act, of the last trouble, of the last cut
        self._acts = 0

    def on_gradients(self, state: StepState) -> None:
        """Act if the step is in trouble; a rate that was cut comes back a little."""
        trouble = self._trouble(state)
        window = self._config.rescue_window
        if trouble is not None:
            self._troubled = state.step
            if self._rung is None or state.step - self._acted >= window:
                self._climb(state, trouble)
            elif self._config.rescue_rungs[self._rung] == "skip":
                self._skip(state, trouble)
        elif self._rung is not None and state.step - self._troubled >= window:
            self._rung = None
        self._warm(state)

    def after_step(self, state: StepState) -> None:
        """Keep the weights at each diagnostic interval that had no step in trouble."""
        interval = self._config.diagnostic_interval
        calm = not self._troubled or state.step - self._troubled >= interval
        if not state.step % interval and calm and not state.skip:
            self._healthy.take(state.step)

    def _trouble(self, state: StepState) -> str | None:
        """What is wrong with a step, in words; None if nothing is.  A loss in trouble enters no average."""
        if not state.finite:
            return f"loss {number_or_name(state.loss)}, gradient norm {number_or_name(state.gradient_norm)}"
        if self._best is not None and state.loss > self._best + self._config.rescue_margin:
            return f"loss {state.loss:.4g}, best {self._best:.4g}"
        self._smoothed.update(state.loss)
        self._seen += 1
        value = self._smoothed.value
        if self._seen >= _SETTLED and value is not None:
            self._best = value if self._best is None else min(self._best, value)
        return None

    def _climb(self, state: StepState, trouble: str) -> None:
        if self._acts >= self._config.rescue_budget:
            return
        last = len(self._config.rescue_rungs) - 1
        self._rung = 0 if self._rung is None else min(self._rung + 1, last)
        self._acted, self._acts = state.step, self._acts + 1
        match self._config.rescue_rungs[self._rung]:
            case "skip":
                self._skip(state, trouble)
            case "rate":
                self._cut = state.step
                state.event("rate_cut", factor=_CUT, steps=_WARM_WINDOWS * self._config.rescue_window, trigger=trouble)
            case "rollback":
                self._healthy.restore()
                state.skip = True
                state.event("rollback", to_step=self._healthy.step, trigger=trouble)
            case "shift":
                self._shift(state, trouble)

    def _skip(self, state: StepState, trouble: str) -> None:
        if not state.skip:
            state.skip = True
            state.event("skip", loss=number_or_name(state.loss), trigger=trouble)

    def _warm(self, state: StepState) -> None:
        """The learning rate of this step after a cut: a tenth, then linearly back to the schedule's."""
        steps = _WARM_WINDOWS * self._config.rescue_window
        if not self._cut or state.step - self._cut >= steps:
            return
        factor = _CUT + (1 - _CUT) * (state.step - self._cut) / steps
        for group in self._optimizer.param_groups:  # the trainer sets the schedule's rate anew before each step
            group["lr"] *= factor
        state.measured["learning_rate"] *= factor

    def _shift(self, state: StepState, trouble: str) -> None:
        wanted = find_format(self._config.rescue_shift_format)
        shifted: Counter[str] = Counter()
        for layer in self._layers.values():
            for name, site in layer.sites.items():
                if site.format.scaled and site.format.name != wanted.name:
                    shifted[site.format.name] += 1
                    overflow = site.format.overflow if wanted.has_inf or site.format.overflow != "inf" else "saturate"
                    layer.set_format(name, dataclasses.replace(wanted, overflow=overflow))
        if self._write_back is not None and shifted:
            self._write_back()
        for old, sites in shifted.items():
            detail = {"from": old, "to": wanted.name, "step": state.step, "trigger": trouble, "sites": sites}
            state.event("format_shift", **detail)
        if not shifted:
            state.event("shift_unavailable", trigger=trouble)

    def state_dict(self) -> dict[str, Any]:
        """Averages, counters, and the healthy weights."""
        return {
            "smoothed": [self._smoothed.total, self._smoothed.weight],
            "seen": self._seen,
            "best": self._best,
            "rung": self._rung,
            "steps": [self._acted, self._troubled, self._cut],
            "acts": self._acts,
            "healthy": self._healthy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._smoothed = Smoothed(*state["smoothed"])
        self._seen, self._best, self._rung, self._acts = state["seen"], state["best"], state["rung"], state["acts"]
        self._acted, self._troubled, self._cut = state["steps"]
        self._healthy.load_state_dict(state["healthy"])

    def take(self, step: int) -> None:
        """Take the present weights as healthy, at the end of `step`: a branch with other numeric fields begins."""
        self._healthy.take(step)
