"""The measurement of the kernel rows: the time of rounding a tensor, relative to copying it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from altgrad.formats import find_format
from altgrad.quantization.kernel.compiled import compiled_round
from bench.harness import ratio, threads

SIZE = 2**24
_SHAPE = (4096, SIZE // 4096)


def against_clone(
    number_of_threads: int = 1, round_with: Callable[..., Any] = compiled_round, **options: Any
) -> Callable[[int], list[float]]:
    """A row's measurement: rounding 2^24 normal float32 values to E4M3, divided by the time of `torch.clone`."""

    def measure(pairs: int) -> list[float]:
        x = torch.randn(_SHAPE)
        fmt = find_format("E4M3")
        with threads(number_of_threads):
            return ratio(lambda: round_with(x, fmt, **options), x.clone, pairs)

    return measure
