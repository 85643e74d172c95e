"""The passes of a batch through the model: this rank's rows of it, in the parts that `accumulate` asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.training.compile.step_loss import StepLoss
from altgrad.training.process_settings import mixed_precision
from altgrad.training.step.step_random import StepRandom
from altgrad.training.task.batch import as_batch, changed, rows, without
from altgrad.training.task.divided_batch import DividedBatch
from altgrad.training.task.found_task import FoundTask, check_call
from altgrad.training.task.loss_value import read_loss
from altgrad.training.task.protocol import Batch


class Passes:
    """Gives batches to a model on its device.  `step_loss`: the loss of a training step, which may be compiled."""

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        task: FoundTask,
        quantized: QuantizedModel,
        step_loss: StepLoss,
        random: StepRandom,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._config, self._model, self._task, self._quantized = config, model, task, quantized
        self._random, self._ranks, self._device = random, ranks, device
        self.step_loss = step_loss
        self.whole: Collection[str | int] = ()  # entries of a batch that are not divided, see `Task.whole`
        self._is_checked = False  # whether the model takes a batch; asked once

    def parts_of(self, batch: Any) -> DividedBatch:
        """This rank's rows of a training batch on the device, in the parts that pass through one after another.

        Example: 12 rows, 2 ranks and `accumulate: 3` give each rank three parts of two rows.  Raises ConfigError if the
        model cannot be called with a batch.
        """
        whole = as_batch(batch, self._task.said)
        if not self._is_checked and self._task.model_has_loss:
            check_call(self._model, whole)
        self._is_checked = True
        divided = DividedBatch(whole, self._task, self.whole, self._ranks, self._config.accumulate)
        divided.parts = [changed(part, self._sent) for part in divided.parts]
        return divided

    def on_device(self, batch: Any) -> Batch:
        """A held-out batch on the device, whole on every rank."""
        return changed(as_batch(batch, self._task.said), self._sent)

    def counted(self, batch: Any) -> tuple[int, float]:
        """(rows of a held-out batch, what its loss counts)."""
        found = as_batch(batch, self._task.said)
        length = rows(without(found, self.whole))
        return length, self._task.weight(found) if self._task.weighs else length

    def forward_backward(self, step: int, divided: DividedBatch) -> Tensor:
        """The mean loss of the parts (0-d), whose gradients are added; each counts as its share of the batch."""
        losses = []
        for number, piece in enumerate(divided.parts):
            self._quantized.begin_step(None, step, number, self._ranks.rank)
            self._seed_masks(step, number)
            with mixed_precision(self._config, self._device):
                loss = self.step_loss(*piece) if isinstance(piece, tuple) else self.step_loss(piece)
            loss.backward(divided.gradient(loss, number, self._ranks))
            losses.append(loss.detach())
        return divided.mean(losses, self._ranks)

    def loss_again(self, step: int, divided: DividedBatch) -> Tensor:
        """The step's loss once more, with its graph: the shadow's dropout repeats the step's masks."""
        losses = []
        for number, piece in enumerate(divided.parts):
            self._seed_masks(step, number)
            losses.append(self.loss_of(piece)[0])
        return divided.mean(losses, self._ranks)

    def loss_of(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(loss of a batch on the device, metrics of the task), not compiled."""
        with mixed_precision(self._config, self._device):
            return read_loss(self._task.loss(self._model, batch))

    def _seed_masks(self, step: int, number: int) -> None:
        """Seed the random numbers of a part's forward pass (dropout), differently on each rank."""
        words = (number,) if number else ()
        self._random.seed("forward", self._config.seed, step, self._ranks.rank, *words)

    def _sent(self, tensor: Tensor) -> Tensor:
        """A batch's tensor on the model's device; it is pinned first, because other copies synchronise."""
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)
