"""Estimates whether compiling pays: the seconds that it costs, and the seconds that it saves over a run.

Example on one core: 25 rounded layers with nothing cached cost 4 + 0.15 x 25 + 6 + 3 x 25 = 89 s as one graph.  A
step becomes 25 x 1 ms + 4 million values x 7 ns - 0.7 ms = 52 ms shorter, so that compiling pays from 1700 steps on.
The estimate is rough on purpose: the choice matters only if both sides differ by minutes, and a wrong one costs a
minute at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

How = Literal["eager", "blocks", "whole"]  # how a step runs: not compiled, a graph per block, one graph

# Seconds on one core (2026, 4 GHz), measured with the built-in GPT: per compiled layer, and once per run.
_COLD_PER_LAYER, _COLD = 3.0, 6.0  # code generation, when the cache is empty
_WARM_PER_LAYER, _WARM = 0.15, 4.0  # tracing, and importing the compiler
# Saved per step: the launch of about 40 small operations at each of three sites of a layer, and 18 of 20 passes over
# each value.
_SAVED_PER_LAYER, _SAVED_PER_VALUE = 1e-3, 7e-9
_COLD_STORED = 10.0  # code generation for moments and stored weights, a graph or two each
_LOST_PER_REGION = 0.7e-3  # seconds to enter and leave a graph, forward and backward


@dataclass(frozen=True)
class Payoff:
    """Seconds that compiling costs a run, and seconds that it saves."""

    cost: float
    saved: float

    @property
    def gain(self) -> float:
        """Seconds that the run gets shorter; negative if it gets longer."""
        return self.saved - self.cost

    def sentence(self) -> str:
        """Both in words: `compiling costs about 89 s and saves about 120 s`."""
        return f"compiling costs about {self.cost:.0f} s and saves about {self.saved:.0f} s"


def cost_of(layers: int, runs_alike: int) -> float:
    """Seconds of compiling `layers` layers; code generation is divided among the `runs_alike` runs that share it."""
    return _WARM + _WARM_PER_LAYER * layers + (_COLD + _COLD_PER_LAYER * layers) / runs_alike


def saved_by(layers: Mapping[str, RoundedGemm], config: TrainConfig, regions: int) -> float:
    """Seconds that compiling saves over a run on one core; `regions`: graphs entered per step (1: one graph)."""
    tokens = config.batch_size * config.shape.block_size  # only a guess for a model that is not the built-in one
    values = sum(layer.weight.numel() + tokens * sum(layer.sizes()) for layer in layers.values())
    saved = _SAVED_PER_LAYER * len(layers) + _SAVED_PER_VALUE * values
    return config.max_steps * (saved - _LOST_PER_REGION * regions)


def stored_saves(values: int, steps: int) -> bool:
    """Whether compiling the rounding of moments and stored weights, so many values, is shorter than running it eagerly.

    Both moments of 26 million weights over 500 steps: 52 million x 500 x 7 ns = 182 s, against 10 s.
    """
    return values * steps * _SAVED_PER_VALUE > _COLD_STORED
