"""STAB-05: clip the gradient norm relative to the range of the format, but only while gradients really overflow.

What overflows must be what is clipped: only the `gradient` operands count.  Activations and weights beyond their range
say nothing about a gradient, and at dynamic scales of their own amax nothing overflows unless `amax_factor` is below 1.

What the limit means depends on the scaling.  Without scales (`scaling: none`) a format's largest value bounds the
gradient itself, so a limit in proportion to it follows what the format can hold.  With scales the scaled gradient
fills the range whatever its norm; an overflow then says that this gradient outgrew its scale (delayed scaling: it is
larger than any of the remembered steps), and the limit is a fixed norm per format (base 1: 1 for E5M2, 0.0078 for
E4M3, 0.00054 for E3M4), small beside a usual gradient, so that a step whose gradient lost its largest values hardly
enters the optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.quantization.layers import QuantizedLinear
from altgrad.stability.protocol import StepState


class PartitionRelativeClipper:
    """Norm limit = base x (largest finite gradient value / that of E5M2), active at a measured overflow rate of the
    gradients of this very step."""

    def __init__(self, config: TrainConfig, layers: Mapping[str, QuantizedLinear]) -> None:
        self._base = config.partition_clip_base
        self._threshold = config.partition_clip_overflow_threshold
        self._layers = layers

    def limit(self) -> float:
        """The norm limit for the formats of now: the narrowest gradient site decides."""
        narrowest = min(layer.format_of("gradient").max for layer in self._layers.values())
        return self._base * narrowest / FORMATS["E5M2"].max

    def on_gradients(self, state: StepState) -> None:
        rate = state.gradient_overflow
        if state.skip or rate is None or rate < self._threshold:
            return
        limit = self.limit()
        if state.gradient_norm > limit:
            state.event("clip", norm=state.gradient_norm, limit=limit, overflow_rate=rate)
            state.limit_norm(limit)

    def after_step(self, state: StepState) -> None:
        """Nothing: the clip is done."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
