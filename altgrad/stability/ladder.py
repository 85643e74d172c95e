"""The rescue ladder: acts of growing strength against a loss that has left its best value, in order, with a budget.

    skip       leave out the optimizer step of a batch whose loss is bad
    rate       cut the learning rate to a tenth, and warm up again; if that did not last, only to a tenth, and so on
    rollback   go back to the last healthy weights; the batches since then are not trained again
    shift      replace the format of the scaled operands, or of chosen ones, by another one for good

A step is in trouble if its loss or gradient is not finite, or its loss lies more than `rescue_margin` above the best
smoothed loss so far.  The margin is in nats.  Of a loss of unknown unit it is the rise that `diverged` asks for with
such a margin (see `course.LossCourse`), but at least eight times the scatter of the batches, because a single batch
counts here: a loss that is multiplied by a constant leads to the same acts.

The first act comes with the first step in trouble.  If the run is still in trouble `rescue_window` steps after an act,
the next rung acts, and after the last one the first that is no `skip`; after as many steps without trouble the ladder
is back at its first rung.  A shift that would change nothing any more is left out, unless it is the only rung.  When
the budget is spent, nothing acts any more, and the collapse rules decide.

A loss that stays NaN ends a run after `non_finite_patience` steps; so a rung has fewer steps to help then, as many as
let all rungs act before that.  A run can also be stuck without trouble: its weights are frozen, or its gradient rounds
to zero.  No rung but a shift changes that, so the ladder goes straight to its shift.

A rollback first goes back to the snapshot in memory.  If the run is in trouble again before the ladder was back at its
first rung, that snapshot was taken too late, and the next rollback goes to the newest healthy checkpoint on disk that
is older, and from before the trouble.  If the rate was cut in this trouble, it warms up from the cut again, because it
may be what drove the weights away.  (A loss of NaN says nothing about the rate.)

Example, a window of 10 and all four rungs: the loss jumps at step 100 and stays up.  Step 100 is skipped, and so is
each bad batch until step 109; at step 110 the rate is cut, at step 120 the run goes back to its snapshot of step 90.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.collapse.course import OUTLYING, LossCourse, cap_of
from altgrad.collapse.smoothing import Smoothed
from altgrad.config.train_config import Rung, TrainConfig
from altgrad.formats import NumberFormat, Overflow, find_format
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.stored.write_back import WriteBack
from altgrad.stability.guard import number_or_name
from altgrad.stability.protocol import StepState
from altgrad.stability.shift_targets import shift_targets
from altgrad.stability.snapshot import Snapshot

_CUT = 0.1  # share of the learning rate right after a cut
_WARM_WINDOWS = 5  # windows in which the rate comes back
_SETTLED = 5  # steps before a smoothed loss counts as the best
# Weights are frozen if this share of their updates is lost, and so little of what they intended arrives, in so many
# windows in a row: as for the emergency shift, see `shift`.
_STALL, _DISPLACEMENT, _WINDOWS = 0.5, 0.25, 2


class RescueLadder:
    """Acts on a run in trouble, see the module.  `companions`: see `Snapshot`; `vocabulary`: see `CollapseDetector`.

    `rewind`: goes back to the newest healthy checkpoint on disk from before a step, and returns its step; None if there
    is none.  None: there are no checkpoints.
    """

    rewind: Callable[[int], int | None] | None = None

    def __init__(
        self,
        config: TrainConfig,
        layers: Mapping[str, RoundedGemm],
        optimizer: torch.optim.Optimizer,
        vocabulary: int | None,
        write_back: WriteBack | None = None,
        companions: Sequence[Tensor] = (),
    ) -> None:
        self._config = config
        self._layers = layers
        self._optimizer = optimizer
        self._write_back = write_back
        self._healthy = Snapshot(optimizer, companions)
        self._course = LossCourse(cap=cap_of(vocabulary))  # of the losses without trouble
        self._seen = 0  # finite losses so far
        self._best: float | None = None
        self._rung: int | None = None  # the rung that acted last; None: at the foot
        self._acted = self._troubled = self._cut = 0  # steps of the last act, of the last trouble, of the last cut
        self._ceiling = 1.0  # share of the schedule's rate to which the rate comes back after the last cut
        self._acts = 0
        self._began = 0  # first step of the present trouble
        self._back: int | None = None  # step of the snapshot to which this trouble has led back
        self._frozen = 0  # diagnostic windows in a row with frozen weights
        if "shift" in config.rescue_rungs:
            shift_targets(config, layers, every_phase=True)

    def on_gradients(self, state: StepState) -> None:
        """Act if the step is in trouble or the run is stuck; a rate that was cut comes back a little."""
        trouble = self._trouble(state)
        if trouble is not None:
            self._troubled = state.step
            if self._rung is None or state.step - self._acted >= self._time_to_help(state):
                self._climb(state, trouble)
            elif self._config.rescue_rungs[self._rung] == "skip":
                self._skip(state, trouble)
        elif self._rung is not None and state.step - self._troubled >= self._config.rescue_window:
            self._rung = self._back = None
        if trouble is None and "shift" in self._config.rescue_rungs:
            stuck = self._stuck(state)
            rested = not self._acted or state.step - self._acted >= self._config.rescue_window
            if stuck is not None and rested and self._to_shift():
                self._climb(state, stuck, self._config.rescue_rungs.index("shift"))
        self.warm(state)

    def after_step(self, state: StepState) -> None:
        """Keep the weights at each diagnostic interval that had no step in trouble, and note whether they move."""
        calm = self._calm(state.step, self._troubled)
        if not state.step % self._config.diagnostic_interval and calm and not state.skip:
            self._healthy.take(state.step)
        stall, displacement = state.measured.get("stall_rate"), state.measured.get("realised_displacement")
        if stall is not None and displacement is not None:
            self._frozen = self._frozen + 1 if stall > _STALL and displacement < _DISPLACEMENT else 0

    def was_calm(self, step: int, state: Mapping[str, Any]) -> bool:
        """Whether the weights at the end of a step were healthy, according to the ladder's state at that time."""
        return self._calm(step, state["steps"][1])

    def _calm(self, step: int, troubled: int) -> bool:
        return not troubled or step - troubled >= self._config.diagnostic_interval

    def _time_to_help(self, state: StepState) -> int:
        """Steps that an act has to help."""
        if state.finite:
            return self._config.rescue_window
        before_verdict = (self._config.non_finite_patience - 1) // len(self._config.rescue_rungs)
        return max(1, min(self._config.rescue_window, before_verdict))

    def _stuck(self, state: StepState) -> str | None:
        """Why nothing is learned although no loss is bad, in words; None if weights move or it is not known."""
        if state.gradient_norm == 0.0:
            return "the gradient is zero"
        if self._frozen < _WINDOWS:
            return None
        return f"frozen weights in {self._frozen} diagnostic windows"

    def _trouble(self, state: StepState) -> str | None:
        """What is wrong with a step, in words; None if nothing is.  A loss in trouble enters no average."""
        if not state.finite:
            return f"loss {number_or_name(state.loss)}, gradient norm {number_or_name(state.gradient_norm)}"
        if self._best is not None and state.loss > self._best + self._margin():
            return f"loss {state.loss:.4g}, best {self._best:.4g}"
        self._course.update(state.step, state.loss)
        self._seen += 1
        value = self._course.smoothed.value
        if self._seen >= _SETTLED and value is not None:
            self._best = value if self._best is None else min(self._best, value)
        return None

    def _margin(self) -> float:
        """The rise above the best that is trouble, in units of the loss; inf as long as that unit has no measure."""
        if self._course.cap is not None:
            return self._config.rescue_margin
        if self._course.initial is None:
            return math.inf
        return self._course.least_rise(self._config.rescue_margin, OUTLYING)

    def _climb(self, state: StepState, trouble: str, rung: int | None = None) -> None:
        """Act with that rung, by default the next one."""
        if self._acts >= self._config.rescue_budget:
            return
        if self._rung is None:
            self._began = state.step
        self._rung = self._next_rung() if rung is None else rung
        self._acted, self._acts = state.step, self._acts + 1
        self.act(self._config.rescue_rungs[self._rung], state, trouble)

    def _next_rung(self) -> int:
        """The rung after the present one; after the last one the first that is no `skip`."""
        rungs = self._config.rescue_rungs
        idle = not self._to_shift() if "shift" in rungs else False
        order = [place for place, rung in enumerate(rungs) if rung != "shift" or not idle] or [0]
        later = [place for place in order if self._rung is None or place > self._rung]
        return next(iter(later or [place for place in order if rungs[place] != "skip"] or order))

    def act(self, rung: Rung, state: StepState, trouble: str) -> None:
        """Do what that rung does, now; trouble: the reason, for the event."""
        match rung:
            case "skip":
                self._skip(state, trouble)
            case "rate":
                self._ceiling *= _CUT if self._cut and state.finite else 1.0  # a NaN says nothing about the rate
                self._cut = state.step
                steps, back = _WARM_WINDOWS * self._config.rescue_window, self._ceiling
                state.event("rate_cut", factor=_CUT * back, back_to=back, steps=steps, trigger=trouble)
                state.rescued()
            case "rollback":
                self._roll_back(state, trouble)
            case "shift":
                self._shift(state, trouble)

    def _roll_back(self, state: StepState, trouble: str) -> None:
        older = None
        if self._back is not None and self.rewind is not None:
            older = self.rewind(min(self._back, self._began))
        if older is None:
            self._healthy.restore()
        else:
            self._healthy.take(older)
        self._back = self._healthy.step
        if self._rung is not None and self._cut >= self._began and state.finite:
            self._cut = state.step
        state.skip = True
        source = "memory" if older is None else "checkpoint"
        state.event("rollback", to_step=self._back, source=source, trigger=trouble)
        state.rescued()

    def _skip(self, state: StepState, trouble: str) -> None:
        if not state.skip:
            state.skip = True
            state.event("skip", loss=number_or_name(state.loss), trigger=trouble)

    def warm(self, state: StepState) -> None:
        """The learning rate of this step after a cut: a tenth of where it comes back to, then linearly up to that."""
        steps = _WARM_WINDOWS * self._config.rescue_window
        if not self._cut or (state.step - self._cut >= steps and self._ceiling == 1.0):
            return
        factor = self._ceiling * (_CUT + (1 - _CUT) * min(1.0, (state.step - self._cut) / steps))
        for group in self._optimizer.param_groups:  # the trainer sets the schedule's rate anew before each step
            group["lr"] *= factor
        state.measured["learning_rate"] *= factor

    def _shift(self, state: StepState, trouble: str) -> None:
        wanted = find_format(self._config.rescue_shift_format)
        shifted: Counter[str] = Counter()
        for layer, name in self._to_shift():
            old = layer.sites[name].format
            shifted[old.name] += 1
            layer.set_format(name, dataclasses.replace(wanted, overflow=_overflow(wanted, old)))
        if self._write_back is not None and shifted:
            self._write_back()
        self._frozen = 0
        chosen = self._chosen()
        for name, sites in shifted.items():
            detail = {"from": name, "to": wanted.name, "step": state.step, "trigger": trouble, "sites": sites}
            state.event("format_shift", **detail, **chosen)
        if shifted:
            state.rescued()
        else:
            state.event("shift_unavailable", trigger=trouble)

    def _to_shift(self) -> list[tuple[RoundedGemm, str]]:
        """The roundings that a shift would change now: a format that is never scaled needs no rescue."""
        wanted = find_format(self._config.rescue_shift_format).name
        targets = ((layer, name, layer.sites[name].format) for layer, name in shift_targets(self._config, self._layers))
        return [(layer, name) for layer, name, old in targets if old.scaled and old.name != wanted]

    def _chosen(self) -> dict[str, Any]:
        """What of the model a shift changes, if not all of it."""
        layers, operands = self._config.rescue_shift_layers, self._config.rescue_shift_operands
        return ({"layers": layers} if layers != "*" else {}) | ({"operands": operands} if operands is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """Averages, counters, and the healthy weights."""
        return {
            "smoothed": [self._course.smoothed.total, self._course.smoothed.weight],  # all that older versions know
            "course": self._course.state_dict(),
            "seen": self._seen,
            "best": self._best,
            "rung": self._rung,
            "steps": [self._acted, self._troubled, self._cut],
            "acts": self._acts,
            "climb": [self._began, self._back, self._frozen, self._ceiling],
            "healthy": self._healthy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        if "course" in state:
            self._course.load_state_dict(state["course"])
        else:  # older checkpoints have the average alone
            self._course = LossCourse(cap=self._course.cap, smoothed=Smoothed(*state["smoothed"]))
        self._seen, self._best, self._rung, self._acts = state["seen"], state["best"], state["rung"], state["acts"]
        self._acted, self._troubled, self._cut = state["steps"]
        self._began, self._back, self._frozen, *later = state.get("climb", [0, None, 0])  # older checkpoints lack it
        self._ceiling = later[0] if later else 1.0
        self._healthy.load_state_dict(state["healthy"])

    def take(self, step: int) -> None:
        """Take the present weights as healthy, at the end of `step`: a branch with other numeric fields begins."""
        self._healthy.take(step)


def _overflow(wanted: NumberFormat, old: NumberFormat) -> Overflow:
    """What overflowed to infinity does so in the new format, if it has one."""
    return old.overflow if wanted.has_inf or old.overflow != "inf" else "saturate"
