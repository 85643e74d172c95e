"""The training loop: it trains one step per call and returns the measurements; it uses no file, no Ray and no logger.

    batch -> forward -> loss -> backward -> interventions -> optimizer.step -> write-back -> measurements -> record

All numbers that decide about a step (the loss, the gradient norm, the rounding counts of every site) are read in one
transfer between backward and the optimizer step, so that the device is synchronised once per step and not once per
number.  With several ranks (see `kernel.ranks`) each takes its rows of the batch, and all make the same decisions.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from altgrad.config.phases import phase_detail
from altgrad.config.train_config import BUILT_IN_TASK, TrainConfig
from altgrad.diagnostics.protocol import MeasuredStep
from altgrad.diagnostics.suite import Diagnostics
from altgrad.events import Event
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.quantization.quantize import quantize_model
from altgrad.stability.guard import NonFiniteGuard
from altgrad.stability.interventions import chosen_interventions
from altgrad.stability.ladder import RescueLadder
from altgrad.stability.protocol import StepState
from altgrad.training.branch_state import changed_numerics, rests_elsewhere
from altgrad.training.compile.policy import How
from altgrad.training.compile.step_loss import StepLoss
from altgrad.training.data import Batches
from altgrad.training.held_out import HeldOutMean, evaluating
from altgrad.training.optim import learning_rate
from altgrad.training.process_settings import full_precision_sums
from altgrad.training.starting_point import Start, check_alike, device_named, hash_weights, load_moments, load_weights
from altgrad.training.step.passes import Passes
from altgrad.training.step.step_counts import SiteCounts
from altgrad.training.step.step_numbers import OwnMetrics, StepNumbers
from altgrad.training.step.step_random import StepRandom
from altgrad.training.step.weight_watch import ForeignChanges, WeightWatch
from altgrad.training.task.divided_batch import check_division, whole_of
from altgrad.training.task.found_task import find_task


@dataclass
class StepOutcome:
    """Results of one step: its record (metrics by name), rows of the `layers` and `tensors` tables, and events.

    `own`: the metrics of the task, by name.
    """

    record: dict[str, float]
    layers: list[Mapping[str, Any]] = field(default_factory=list)
    tensors: list[Mapping[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    own: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains the task of one config (see `task.protocol`).

    `model`: any module whose call `model(inputs, targets)` returns the loss; it is quantised in place.  None: the
    task's.  `batches`: the data (see `Batches`); None: the task's.
    `start`: weights to start from, and what of their run goes on; None: the model as it was made, at step 0.
    `runs_alike`, `compiled_before`: see `StepLoss`.
    If the caller has joined a process group, all its ranks train this run together.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module | None = None,
        batches: Batches | None = None,
        runs_alike: int | None = None,
        compiled_before: How | None = None,
        start: Start | None = None,
    ) -> None:
        self.config = config
        self.ranks = Ranks.joined()
        self.ranks.check_batch(config.batch_size)
        self.device = device_named(config.device)
        self.task = find_task(config, batches)
        self.batches: Batches = self.task.batches(config) if batches is None else batches
        if config.accumulate * self.ranks.size > 1:
            check_division(self.batches, self.task.said, config.seed)
        if model is None:
            model = self.task.model(config)
        if start is not None:
            load_weights(model, start.weights)
        self.initial_weights_hash = hash_weights(model)
        self.model = model.to(self.device)
        if not model.training:  # a model in training mode is left alone: parts of it may be frozen in evaluation mode
            model.train()
        self.quantized = quantize_model(model, config, total_steps=config.max_steps)
        self.layers = self.quantized.layers
        if not self.ranks.alone:
            self.quantized.share()
        check_alike(self.ranks, self.device, self.initial_weights_hash, self.batches.digest())
        self.optimizer = self.task.optimizer(model, config)
        self._rates = [float(group["lr"]) / config.learning_rate for group in self.optimizer.param_groups]
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._write_back = self.quantized.write_back
        self._counts = SiteCounts(self.quantized, self.ranks)
        self._numbers = StepNumbers(parameters, self._counts, self.ranks)
        self._watch = WeightWatch(self.layers, self.optimizer)
        self._random = StepRandom(self.device)
        self._own = OwnMetrics(self.ranks)
        loss = StepLoss(
            model, self.layers, config, self.device, runs_alike, compiled_before, self.ranks, self.task, self._own.add
        )
        self._passes = Passes(config, model, self.task, self.quantized, loss, self._random, self.ranks, self.device)
        self._passes.whole = whole_of(self.batches)
        self.quantized.compile_stored(loss.compiles_stored(self.quantized.values_stored()))
        corrections = None if self._write_back is None else self._write_back.corrections
        self._diagnostics = Diagnostics(config, model, self.layers, corrections)
        self._changes = ForeignChanges(parameters, self.layers)
        classes = self.batches.vocabulary
        self.interventions = chosen_interventions(config, model, self.quantized, self.optimizer, classes)
        # For a rescue ladder: the states in the checkpoints from before a step, newest first; None: there are none.
        self.earlier_states: Callable[[int], Iterable[Mapping[str, Any]]] | None = None
        for place, one in enumerate(self.interventions):
            if isinstance(one, RescueLadder):
                one.rewind = functools.partial(self._rewind, one, place)
        if start is not None and start.optimizer is not None:
            load_moments(self.optimizer, start.optimizer)
        self.step_number, self.tokens, self._ahead = (start.step, start.tokens, start.ahead) if start else (0, 0, 0)
        self.elapsed_seconds = 0.0

    @property
    def compiled(self) -> How:
        """How the forward and backward pass runs: "eager", "whole" (one graph) or "blocks"; see `compile_reason`."""
        return self._passes.step_loss.how

    @property
    def compile_reason(self) -> str:
        """Why the forward and backward pass runs as it does, in one line."""
        return self._passes.step_loss.reason

    @property
    def loss_unit(self) -> str:
        """The task's; "" for a model of the caller's whose batches have no vocabulary, so that its loss is unknown."""
        return "" if self.config.task == BUILT_IN_TASK and self.batches.vocabulary is None else self.task.unit

    def step(self) -> StepOutcome:
        """Train one step and return its measurements.

        torch's global random generators are seeded for the step; their states and the settings of the process (see
        `process_settings`) are restored afterwards.
        """
        started = time.perf_counter()
        self.step_number += 1
        with self._random.borrowed(), full_precision_sums():
            outcome, tokens = self._step()
        self._account(outcome.record, tokens, time.perf_counter() - started)
        return outcome

    def _step(self) -> tuple[StepOutcome, int]:
        """(outcome of the step, number of its tokens)."""
        step, config = self.step_number, self.config
        place = step + config.skip_batches + self._ahead
        self._random.seed("batch", config.seed, place)
        batch = self.batches.training(place)
        parts = self._passes.parts_of(batch)
        rate = learning_rate(config, step)
        for group, share in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        phase = self.quantized.phase

        measuring = step % config.diagnostic_interval == 0 or step == config.max_steps
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._passes.forward_backward(step, parts)
        state = self._numbers.read(step, loss, self._own)
        state.measured["learning_rate"] = rate
        if self.quantized.phase != phase:
            state.event("phase", **phase_detail(config.phases, self.quantized.phase))
        if measuring and state.finite:
            loss_again = functools.partial(self._passes.loss_again, step, parts)
            self._diagnostics.before_step(MeasuredStep(step, self.layers, loss_again, self.ranks))
        outcome = StepOutcome(state.measured, events=state.events, own=self._own.values)
        for intervention in self.interventions:
            intervention.on_gradients(state)
        if not state.skip:
            self._update(state, outcome, measuring=measuring and state.finite)
        else:
            self.quantized.after_skipped_step(self._counts.of_all_ranks)
        for intervention in self.interventions:
            intervention.after_step(state)
        self._notice_changes()

        if step % config.eval_interval == 0 or step == config.max_steps:
            validation = self.validation()
            if validation is not None:
                state.measured["validation_loss"], own = validation
                outcome.own |= own
        return outcome, parts.tokens

    def _notice_changes(self) -> None:
        """Tell the diagnostics if an intervention or the caller has changed weights or formats."""
        if self._changes.found():
            self._diagnostics.weights_were_changed()

    def _update(self, state: StepState, outcome: StepOutcome, *, measuring: bool) -> None:
        """Clip, take the optimizer step, write weights back to their grid, and measure around it."""
        self._notice_changes()
        if self.config.gradient_clip:
            state.limit_norm(self.config.gradient_clip)
        if measuring:
            self._watch.before_step()
        self.optimizer.step()
        if measuring:
            self._watch.after_optimizer()
        self.quantized.after_optimizer(self.optimizer, self._counts.of_all_ranks)
        self._changes.accept()
        if measuring:
            snapshot, outcome.tensors = self._diagnostics.measure(state.step, self._watch.steps())
            outcome.record.update(snapshot.values)
            outcome.layers = self._counts.rows(state.step, snapshot.layers, self._write_back)

    def validation_loss(self) -> float | None:
        """Mean loss over the held-out batches (nats for the built-in model); None if there are none."""
        found = self.validation()
        return None if found is None else found[0]

    @torch.no_grad()
    def validation(self) -> tuple[float, dict[str, float]] | None:
        """(mean loss over the held-out batches, the same of each metric of the task), with the present formats.

        The metrics' names begin with `validation_`.  None if there are no held-out batches.  Every rank evaluates all
        batches, because their number of rows need not be a multiple of the number of ranks.
        """
        mean = HeldOutMean(self.device)
        with self._random.borrowed(), full_precision_sums(), evaluating(self.model):
            self._random.seed("validation", self.config.seed)
            for number, batch in enumerate(self.batches.validation()):
                self.quantized.begin_validation(None, self.step_number, number)
                mean.add(*self._passes.loss_of(self._passes.on_device(batch)), *self._passes.counted(batch))
        return mean.read()

    def _account(self, record: dict[str, float], tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.elapsed_seconds += seconds
        record["tokens"] = self.tokens
        record["elapsed_seconds"] = self.elapsed_seconds
        record["tokens_per_second"] = tokens / seconds

    def state_dict(self) -> dict[str, Any]:
        """The complete state on which the next step depends; tensors, numbers and strings only."""
        return {
            "step": self.step_number,
            "tokens": self.tokens,
            "ahead": self._ahead,
            "elapsed_seconds": self.elapsed_seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "quantized": self.quantized.state_dict(),
            "diagnostics": self._diagnostics.state_dict(),
            "interventions": [intervention.state_dict() for intervention in self.interventions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`: on the same machine training continues bit for bit."""
        self.step_number, self.tokens = state["step"], state["tokens"]
        self.elapsed_seconds, self._ahead = state["elapsed_seconds"], state.get("ahead", 0)
        self.model.load_state_dict(state["model"])
        self.quantized.load_state_dict(state["quantized"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._diagnostics.load_state_dict(state["diagnostics"])
        for intervention, kept in zip(self.interventions, state["interventions"], strict=True):
            intervention.load_state_dict(kept)
        self._changes.accept()

    def _rewind(self, ladder: RescueLadder, place: int, before: int) -> int | None:
        """Go back to the newest healthy checkpoint from before a step: weights, moments, histories, compensations.

        Formats, phase, random numbers and the position in the data stay where they are.  Returns its step, or None.
        place: of the ladder among the interventions.
        """
        for state in self.earlier_states(before) if self.earlier_states is not None else ():
            if not ladder.was_calm(state["step"], state["interventions"][place]):
                continue
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.quantized.load_earlier(state["quantized"])
            for guard in (one for one in self.interventions if isinstance(one, NonFiniteGuard)):
                guard.take(state["step"])
            return int(state["step"])
        return None

    def begin_branch(self, before: TrainConfig, forget: Collection[str] = ()) -> None:
        """Call after the adapted state of a run with the config `before` was loaded, see `branch_state.adapted`.

        If numeric fields differ, stored weights are rounded to their new grid, and what spans several steps restarts.
        """
        if not (changed_numerics(before, self.config) or forget):
            return
        if self._write_back is not None and rests_elsewhere(before, self.config, self.layers, self.step_number):
            self.quantized.begin_step(None, self.step_number, rank=self.ranks.rank)
            self._write_back()
            self._write_back.forget()
        self._diagnostics.weights_were_changed()
        self._changes.accept()
        for intervention in self.interventions:
            if isinstance(intervention, NonFiniteGuard | RescueLadder):
                intervention.take(self.step_number)
