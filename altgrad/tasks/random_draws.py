"""Random numbers of a batch: the same for every format, others for each seed, split and number.

They are numpy's: torch's generator on a CPU takes only 32 bits of a seed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from altgrad.config.train_config import TrainConfig
from altgrad.training.task.protocol import Split

_HELD_OUT = 1 << 62  # added to the number of a held-out batch: no step is as large


def normal(config: TrainConfig, split: Split, number: int, *columns: int) -> list[Tensor]:
    """Normal numbers, (batch_size, n) float32 for each n of `columns`."""
    place = number + (_HELD_OUT if split == "validation" else 0)
    generator = np.random.Generator(np.random.Philox(key=[config.seed, place]))
    return [torch.from_numpy(generator.standard_normal((config.batch_size, n), np.float32)) for n in columns]
