"""The training loop: it trains one step per call and returns the measurements; it uses no file, no Ray and no logger.

    batch -> forward -> loss -> backward -> interventions -> optimizer.step -> write-back -> measurements -> record

All numbers that decide about a step (the loss, the gradient norm, the rounding counts of every site) are read in one
transfer between backward and the optimizer step, so that the device is synchronised once per step and not once per
number.  With several ranks (see `kernel.ranks`) each takes its rows of the batch, and all make the same decisions.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.diagnostics.protocol import MeasuredStep
from altgrad.diagnostics.suite import Diagnostics
from altgrad.events import Event
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.quantization.quantized_model import quantize_model
from altgrad.stability.guard import NonFiniteGuard
from altgrad.stability.interventions import chosen_interventions
from altgrad.stability.protocol import StepState
from altgrad.training.branch_state import changed_numerics, rests_elsewhere
from altgrad.training.compile.policy import How
from altgrad.training.compile.step_loss import StepLoss
from altgrad.training.data import Batches, TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer, learning_rate
from altgrad.training.process_settings import full_precision_sums, mixed_precision
from altgrad.training.starting_point import check_alike, device_named, hash_weights
from altgrad.training.step_counts import SiteCounts
from altgrad.training.step_numbers import StepNumbers
from altgrad.training.weight_watch import ForeignChanges, StepRandom, WeightWatch, evaluating


@dataclass
class StepOutcome:
    """Results of one step: its record (metrics by name), rows of the `layers` and `tensors` tables, and events."""

    record: dict[str, float]
    layers: list[Mapping[str, Any]] = field(default_factory=list)
    tensors: list[Mapping[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class Trainer:
    """Trains one model under one config.

    `model`: any module whose call `model(inputs, targets)` returns the loss (0-d); it is quantised in place.  None: the
    config's GPT.  `batches`: the data (see `Batches`); None: the config's text.
    `runs_alike`, `compiled_before`: see `StepLoss` (there `runs_alike`, `earlier`).
    If the caller has joined a process group, all its ranks train this run together.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module | None = None,
        batches: Batches | None = None,
        runs_alike: int | None = None,
        compiled_before: How | None = None,
    ) -> None:
        self.config = config
        self.ranks = Ranks.joined()
        self.ranks.check_batch(config.batch_size)
        self.device = device_named(config.device)
        if batches is None:
            block_size = config.shape.block_size
            batches = TextBatches(load_corpus(config), config, block_size)
        self.batches = batches
        if model is None:
            if batches.vocabulary is None:
                raise ValueError("batches.vocabulary is None, which the built-in GPT needs; give your own model too")
            model = build_gpt(config, batches.vocabulary)
        self.initial_weights_hash = hash_weights(model)
        self.model = model.to(self.device)
        if not model.training:  # a model in training mode is left alone: parts of it may be frozen in evaluation mode
            model.train()
        self.quantized = quantize_model(model, config)
        self.layers = self.quantized.layers
        if not self.ranks.alone:
            self.quantized.share()
        check_alike(self.ranks, self.device, self.initial_weights_hash, self.batches.digest())
        self.optimizer = build_optimizer(model, config)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._write_back = self.quantized.write_back
        self._counts = SiteCounts(self.quantized, self.ranks)
        self._numbers = StepNumbers(parameters, self._counts, self.ranks)
        self._watch = WeightWatch(self.layers, self.optimizer)
        self._random = StepRandom(self.device)
        self._loss = StepLoss(model, self.layers, config, self.device, runs_alike, compiled_before, self.ranks)
        corrections = None if self._write_back is None else self._write_back.corrections
        self._diagnostics = Diagnostics(config, model, self.layers, corrections)
        self._changes = ForeignChanges(parameters, self.layers)
        self.interventions = chosen_interventions(config, model, self.quantized, self.optimizer)
        self.step_number = 0
        self.elapsed_seconds = 0.0
        self.tokens = 0

    @property
    def compiled(self) -> How:
        """How the forward and backward pass runs: "eager", "whole" (one graph) or "blocks"; see `compile_reason`."""
        return self._loss.how

    @property
    def compile_reason(self) -> str:
        """Why the forward and backward pass runs as it does, in one line."""
        return self._loss.reason

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
        place = step + config.skip_batches
        self._random.seed("batch", config.seed, place)
        batch = self.batches.training(place)
        inputs, targets = (self._on_device(part) for part in self.ranks.part(batch))
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.quantized.begin_step(None, step, rank=self.ranks.rank)

        measuring = step % config.diagnostic_interval == 0 or step == config.max_steps
        self._seed_masks()
        loss = self._forward_backward(inputs, targets)
        state = self._numbers.read(step, loss)
        state.measured["learning_rate"] = rate
        if measuring and state.finite:

            def loss_again() -> Tensor:
                self._seed_masks()  # the shadow's dropout repeats the step's masks
                return self._model_loss(inputs, targets)

            self._diagnostics.before_step(MeasuredStep(step, self.layers, loss_again, self.ranks))
        outcome = StepOutcome(state.measured, events=state.events)
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
            state.measured["validation_loss"] = self.validation_loss()
        return outcome, len(batch[0]) if batch[0].is_floating_point() else batch[0].numel()

    def _seed_masks(self) -> None:
        """Seed the random numbers of this step's forward pass (dropout), differently on each rank."""
        self._random.seed("forward", self.config.seed, self.step_number, self.ranks.rank)

    def _notice_changes(self) -> None:
        """Tell the diagnostics if an intervention or the caller has changed weights or formats."""
        if self._changes.found():
            self._diagnostics.weights_were_changed()

    def _on_device(self, part: Tensor) -> Tensor:
        """A batch's tensor on the model's device; it is pinned first, because other copies synchronise."""
        if self.device.type == "cuda" and part.device.type == "cpu":
            part = part.pin_memory()
        return part.to(self.device, non_blocking=True)

    def _model_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss (0-d) of the model itself, never compiled."""
        with mixed_precision(self.config, self.device):
            loss: Tensor = self.model(inputs, targets)
        return loss

    def _forward_backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.config, self.device):
            loss = self._loss(inputs, targets)
        loss.backward(self.ranks.weight(loss))
        return loss.detach()

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

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the held-out batches (nats for the built-in model), with the present formats.

        Every rank evaluates all batches, because their number of rows need not be a multiple of the number of ranks.
        """
        total, count = torch.zeros((), dtype=torch.float32, device=self.device), 0
        with self._random.borrowed(), full_precision_sums(), evaluating(self.model):
            self._random.seed("validation", self.config.seed)
            for number, (inputs, targets) in enumerate(self.batches.validation()):
                self.quantized.begin_validation(None, self.step_number, number)
                total += self._model_loss(self._on_device(inputs), self._on_device(targets)) * len(inputs)
                count += len(inputs)
        return float(total / count)

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
        self.elapsed_seconds = state["elapsed_seconds"]
        self.model.load_state_dict(state["model"])
        self.quantized.load_state_dict(state["quantized"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._diagnostics.load_state_dict(state["diagnostics"])
        for intervention, kept in zip(self.interventions, state["interventions"], strict=True):
            intervention.load_state_dict(kept)
        self._changes.accept()

    def begin_branch(self, before: TrainConfig, forget: Collection[str] = ()) -> None:
        """Call after the adapted state of a run with the config `before` was loaded, see `branch_state.adapted`.

        If numeric fields differ, stored weights are rounded to their new grid, and what spans several steps restarts.
        """
        if not (changed_numerics(before, self.config) or forget):
            return
        if self._write_back is not None and rests_elsewhere(before, self.config, self.layers):
            self.quantized.begin_step(None, self.step_number, rank=self.ranks.rank)
            self._write_back()
            self._write_back.forget()
        self._diagnostics.weights_were_changed()
        self._changes.accept()
        for intervention in self.interventions:
            if isinstance(intervention, NonFiniteGuard):
                intervention.take(self.step_number)
