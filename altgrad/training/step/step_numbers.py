"""Reads the numbers that decide about a step, between backward and the optimizer step, in one transfer to the host.

With several ranks the gradients are added up first, so that every rank reads the numbers of the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from altgrad.quantization.kernel.ranks import Ranks
from altgrad.stability.protocol import StepState
from altgrad.training.step.step_counts import SiteCounts


class OwnMetrics:
    """Metrics of the task in one step: means over the parts of the batch and over ranks.

    `values`: those that were read last, by name.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._found: dict[str, list[Tensor]] = {}
        self.values: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of a part of the batch (0-d each, on the device)."""
        for name, value in metrics.items():
            self._found.setdefault(name, []).append(value)

    def take(self) -> tuple[list[str], Tensor | None]:
        """(names, their means as one tensor, None without any); the next step begins without any."""
        found, self._found = self._found, {}
        if not found:
            return [], None
        means = torch.stack([torch.stack([value.float() for value in values]).mean() for values in found.values()])
        return list(found), self._ranks.mean(means)


class StepNumbers:
    """Reads loss, gradient norm and rounding counts of a step.

    parameters: those that are trained, in the model's order, as in a plain training loop: the last bit of the gradient
    norm depends on the order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], counts: SiteCounts, ranks: Ranks) -> None:
        self._parameters = parameters
        self._counts = counts
        self._ranks = ranks

    def read(self, step: int, loss: Tensor, own: OwnMetrics) -> StepState:
        """The state of the step after backward.  Every `.grad` becomes that of the global batch.

        loss: 0-d, of this rank's rows.  own: the task's metrics, which are read in the same transfer.
        """
        there = self._add_up_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        names, means = own.take()
        more = [] if means is None else [means]
        loss_value, numbers = self._counts.read(loss, torch.cat([norm.reshape(1), *there, *more]))
        norm_value, *on_ranks = numbers[: len(numbers) - len(names)]
        if norm_value == 0.0:  # torch's norm squares in float32, where the square of 1e-25 is 0
            norm_value = _norm_in_float64(self._parameters)
        own.values = dict(zip(names, numbers[len(numbers) - len(names) :], strict=True))
        for parameter, count in zip(self._parameters, on_ranks, strict=False):
            if not count:  # no rank's rows reached this parameter: as in one process the optimizer must skip it
                parameter.grad = None
        record = {"step": step, "loss": loss_value, "gradient_norm": norm_value, **self._counts.rates()}
        overflow = self._counts.rates("gradient").get("overflow_rate")
        state = StepState(step, loss_value, norm_value, self._parameters, record, norm, overflow)
        # a finite norm proves that no value is NaN or inf
        record["non_finite_gradients"] = 0.0 if state.finite else _non_finite_share(self._parameters)
        return state

    def _add_up_gradients(self) -> list[Tensor]:
        """Replace every `.grad` by that of the global batch.

        Returns, as a list of one tensor, the number of ranks on which each gradient existed; with one rank, nothing.
        """
        if self._ranks.alone:
            return []
        gradients, there = self._ranks.add_up([p.grad for p in self._parameters], self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return [there]


def _norm_in_float64(parameters: Sequence[Tensor]) -> float:
    squares = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) ** 2 for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _non_finite_share(parameters: Sequence[Tensor]) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    bad = torch.stack([(~torch.isfinite(gradient)).sum() for gradient in gradients]).sum()
    return float(bad) / sum(gradient.numel() for gradient in gradients)
