"""Partition clipping: clip the gradient norm relative to the format's range, only in steps whose gradients overflow.

Only the overflow of `gradient` operands counts, because an overflow of activations or weights is no evidence about a
gradient.  With dynamic scaling a tensor is scaled by its own amax and overflows only if `amax_factor` is below 1.

The meaning of the limit depends on the scaling.  Without scales (`scaling: none`) the largest value of the format
bounds the gradient itself, so that a proportional limit follows the range.  With scales the scaled gradient fills the
range at any norm; an overflow then means that the gradient outgrew its scale (with delayed scaling: that it is larger
than in all remembered steps).  The limit is then a fixed norm per format (base 1: 1 for E5M2, 0.0078 for E4M3, 0.00054
for E3M4), which is small beside a usual gradient: a step whose gradient lost its largest values hardly enters the
optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.stability.protocol import StepState


class PartitionClipper:
    """Clips to the norm base x (largest finite value of the gradient format / that of E5M2).

    It acts only in steps in which the measured overflow rate of the gradients reaches the threshold.
    """

    def __init__(self, config: TrainConfig, layers: Mapping[str, RoundedGemm]) -> None:
        self._base = config.partition_clip_base
        self._threshold = config.partition_clip_overflow_threshold
        self._layers = layers

    def limit(self) -> float:
        """The norm limit for the present formats; the gradient site with the smallest range decides."""
        narrowest = min(layer.format_of("gradient").max for layer in self._layers.values())
        return self._base * narrowest / FORMATS["E5M2"].max

    def on_gradients(self, state: StepState) -> None:
        """Clip the gradients to `limit` if enough of them overflowed in this step; a clip is a `clip` event."""
        rate = state.gradient_overflow
        if state.skip or rate is None or rate < self._threshold:
            return
        limit = self.limit()
        if state.gradient_norm > limit:
            state.event("clip", norm=state.gradient_norm, limit=limit, overflow_rate=rate)
            state.limit_norm(limit)

    def after_step(self, state: StepState) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: each step is judged by itself."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing, as there is no state."""
