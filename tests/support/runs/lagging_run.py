"""A run that is 1 nat behind its baseline from step 30 on: only the gap to the baseline can tell that it collapsed."""

from __future__ import annotations

import math

from altgrad.config.train_config import TrainConfig
from tune.plan.trial import Trial

CONFIG = TrainConfig(
    max_steps=200, warmup_steps=5, gap_limit=0.5, gap_patience=20, never_learned_fraction=1.0, diverged_patience=500
)
BASELINE = Trial("bf16", CONFIG.altered(format="BF16"))
LAGGARD = Trial("e7m0", CONFIG.altered(format="E7M0"), baseline="bf16")


def falling(step: int) -> float:
    """The baseline's loss."""
    return 2.0 + 3.5 * math.exp(-step / 40)


def lagging(step: int) -> float:
    """The run's loss, still falling: no rule that looks at this run alone may fire."""
    return falling(step) + min(1.0, max(0.0, (step - 20) / 10))
