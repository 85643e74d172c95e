"""Whether compiling pays: what it costs, and what it saves over a run.

Rough on purpose: the choice matters only where both sides differ by minutes, and a wrong one costs a minute at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.layers import QuantizedLinear

How = Literal["eager", "blocks", "whole"]  # of a step: compiled block by block, or as one graph

Known = Literal["here", "on disk", "nowhere"]  # what was compiled before: in this process, on this machine

# Seconds on one core (2026, 4 GHz), measured with the built-in GPT; per layer that is compiled, and once.
_COLD_PER_LAYER, _COLD = 3.0, 6.0  # nothing in the cache
_WARM_PER_LAYER, _WARM = 0.15, 4.0  # tracing, and importing the compiler
# What a step saves: three sites of some 40 small operations per layer, and 20 passes over each value instead of 2.
_SAVED_PER_LAYER, _SAVED_PER_VALUE = 1e-3, 7e-9
_LOST_PER_REGION = 0.7e-3  # entering and leaving a graph, forward and backward


@dataclass(frozen=True)
class Payoff:
    """Seconds that compiling costs this run and saves it."""

    cost: float
    saved: float

    @property
    def gain(self) -> float:
        return self.saved - self.cost

    def sentence(self) -> str:
        return f"compiling costs about {self.cost:.0f} s and saves about {self.saved:.0f} s"


def cost_of(layers: int, known: Known, runs_alike: int) -> float:
    """Seconds until the first step with `layers` compiled layers; a run's share where `runs_alike` share the cache."""
    if known == "here":
        return 0.0
    warm = _WARM + _WARM_PER_LAYER * layers
    return warm if known == "on disk" else warm + (_COLD + _COLD_PER_LAYER * layers) / runs_alike


def saved_by(layers: Mapping[str, QuantizedLinear], config: TrainConfig, regions: int) -> float:
    """Seconds that a run is shorter on one core, compiled as one graph (`regions` = 1) or as several."""
    tokens = config.batch_size * config.shape.block_size  # a guess for a model of your own
    values = sum(layer.weight.numel() + tokens * (layer.in_features + layer.out_features) for layer in layers.values())
    saved = _SAVED_PER_LAYER * len(layers) + _SAVED_PER_VALUE * values
    return config.max_steps * (saved - _LOST_PER_REGION * regions)
