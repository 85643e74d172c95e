"""STAB-05: clip the gradient norm relative to the range of the format, but only while that format really overflows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altgrad.formats import FORMATS
from altgrad.quantization.layers import QuantizedLinear
from altgrad.stability.protocol import StepState
from altgrad.training.config import TrainConfig


class PartitionRelativeClipper:
    """Norm limit = base x (largest finite gradient value / that of E5M2), active at a measured overflow rate."""

    def __init__(self, config: TrainConfig, layers: Mapping[str, QuantizedLinear]) -> None:
        self._base = config.partition_clip_base
        self._threshold = config.partition_clip_overflow_threshold
        self._layers = layers

    def limit(self) -> float:
        """The norm limit for the formats of now: the narrowest gradient site decides."""
        narrowest = min(layer.format_of("gradient").max for layer in self._layers.values())
        return self._base * narrowest / FORMATS["E5M2"].max

    def on_gradients(self, state: StepState) -> None:
        rate = state.measured.get("overflow_rate")
        if state.skip or rate is None or rate < self._threshold:
            return
        limit = self.limit()
        if state.gradient_norm > limit:
            state.event("clip", norm=state.gradient_norm, limit=limit, overflow_rate=rate)
            state.scale_gradients(limit / state.gradient_norm)

    def after_step(self, state: StepState) -> None:
        """Nothing: the clip is done."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
