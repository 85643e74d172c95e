"""Runs all diagnostics that a config switches on around one step, with one transfer to the host.

A NaN result has one of two meanings.  If a layer's own numbers contain NaN or inf, NaN is the measurement and is kept.
If they are finite, the quantity is undefined (a correlation with a constant, a ratio to zero) and left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.diagnostics.measures import value_histogram as histogram
from altgrad.diagnostics.measures.decay import DecayLost
from altgrad.diagnostics.measures.gradient_norm import LayerGradientNorm
from altgrad.diagnostics.measures.grid_alignment import GridAlignment
from altgrad.diagnostics.measures.realised_displacement import Displacement
from altgrad.diagnostics.measures.shadow import Shadow
from altgrad.diagnostics.measures.stable_rank import StableRank
from altgrad.diagnostics.measures.stall import Stall
from altgrad.diagnostics.measures.stiffness import GradientStiffness, Stiffness
from altgrad.diagnostics.measures.ulps_moved import UlpsMoved
from altgrad.diagnostics.measures.update_size import GradientSparsity, UpdateSize
from altgrad.diagnostics.protocol import Diagnostic, DiagnosticSnapshot, LayerStep, MeasuredStep
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

MIN_HISTOGRAM_INTERVAL = 10  # in steps, so that the `tensors` table of a run of 500 steps stays within 1 MB


class Diagnostics:
    """The diagnostics of one run: call `before_step` right after backward, `measure` after the optimizer step.

    `corrections`: those of the write-back (see `Displacement`); None with master weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        layers: Mapping[str, RoundedGemm],
        corrections: Mapping[str, Tensor] | None,
    ) -> None:
        self._displacement = Displacement(layers, corrections)
        self._diagnostics: list[Diagnostic] = [
            Stall(),
            self._displacement,
            UpdateSize(),
            GradientSparsity(),
            LayerGradientNorm(),
            StableRank(),
        ]
        if not config.master_weights:
            self._diagnostics.append(DecayLost())
        if config.log_stiffness:
            self._diagnostics += [Stiffness(), GradientStiffness()]
        if config.log_grid_alignment:
            self._diagnostics.append(GridAlignment())
        if config.log_ulp:
            self._diagnostics.append(UlpsMoved())
        if config.use_shadow:
            self._diagnostics.append(Shadow(model))
        self._histograms = histogram.Histograms(layers)
        self._last_histogram: int | None = None
        self._finite_gradient: dict[str, Tensor] = {}

    def weights_were_changed(self) -> None:
        """Call if anything but the optimizer changed weights or formats: measurements over several steps restart."""
        self._displacement.restart()

    def before_step(self, context: MeasuredStep) -> None:
        """Measure the gradients that backward computed, before anything changes them."""
        gradients = {name: layer.weight_gradient for name, layer in context.layers.items()}
        self._finite_gradient = {name: _finite(g) for name, g in gradients.items() if g is not None}
        for diagnostic in self._diagnostics:
            diagnostic.before_step(context)

    @torch.no_grad()
    def measure(self, step: int, steps: Sequence[LayerStep]) -> tuple[DiagnosticSnapshot, list[Mapping[str, Any]]]:
        """(measurements of a step, its rows of the `tensors` table).

        Without a layer whose weight is stored there is nothing to measure, as where all weights are parametrised.
        """
        if not steps:
            return DiagnosticSnapshot(step, {}, []), []
        on_grid = [part for part in steps if part.layer.keeps_grid]
        given = [(diagnostic, on_grid if diagnostic.of_grid else steps) for diagnostic in self._diagnostics]
        found = [diagnostic.measure(parts) for diagnostic, parts in given if parts]
        finite = {part.name: self._is_finite(part) for part in steps}
        vectors = self._histograms.measure(steps) if self._wants_histogram(step) else {}

        scalars = [*finite.values()]
        scalars += [value for part in found for value in part.step.values()]
        scalars += [value for part in found for row in part.layers.values() for value in row.values()]
        packed = torch.cat([torch.stack([scalar.double() for scalar in scalars]), *vectors.values()])
        host = iter(packed.tolist())

        is_finite = {name: bool(next(host)) for name in finite}
        values = {metric: next(host) for part in found for metric in part.step}
        rows: dict[str, dict[str, float]] = {name: {} for name in finite}
        for part in found:
            for name, metrics in part.layers.items():
                rows[name] |= {metric: next(host) for metric in metrics}
        tensors: list[Mapping[str, Any]] = [
            {"step": step, "layer": name, "site": site, **histogram.row(list(itertools.islice(host, len(vector))))}
            for (name, site), vector in vectors.items()
        ]
        snapshot = DiagnosticSnapshot(
            step,
            _defined(values, all(is_finite.values())),
            [
                {"step": step, "layer": name, "site": "weight", **_defined(row, is_finite[name])}
                for name, row in rows.items()
            ],
        )
        return snapshot, tensors

    def _is_finite(self, part: LayerStep) -> Tensor:
        finite = _finite(part.weight_before) & _finite(part.intended)
        return finite & self._finite_gradient.get(part.name, finite)

    def _wants_histogram(self, step: int) -> bool:
        wanted = self._last_histogram is None or step - self._last_histogram >= MIN_HISTOGRAM_INTERVAL
        if wanted:
            self._last_histogram = step
        return wanted

    def state_dict(self) -> dict[str, Any]:
        """The state on which later measurements depend; tensors and numbers only."""
        return {"displacement": self._displacement.state_dict(), "last_histogram": self._last_histogram}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._displacement.load_state_dict(state["displacement"])
        self._last_histogram = state["last_histogram"]


def _finite(x: Tensor) -> Tensor:
    """Whether all values are finite (bool, 0-d)."""
    return torch.isfinite(x.abs().amax())


def _defined(values: Mapping[str, float], inputs_finite: bool) -> dict[str, float]:
    """The values without those that are NaN although their inputs were finite."""
    return {metric: value for metric, value in values.items() if not (inputs_finite and math.isnan(value))}
