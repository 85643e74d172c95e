"""Compiled rounding: one pass over the data, one graph for all formats.

The options matter.  By default Inductor stores an intermediate that has several readers, which splits rounding with
counts into two passes over the data; with these thresholds it keeps intermediates in registers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.random import draw_key
from altgrad.quantization.kernel.round import Rounding, spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site, rounded_with_counts

# For `torch.compile(..., options=INDUCTOR_OPTIONS)` of anything that rounds.
INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_opcount_threshold": 128,
    "realize_reads_threshold": 8,
    "eager_numerics.division_rounding": True,  # Triton's division errs by 2 ULP; real scales would differ from eager's
    "eager_numerics.disable_ftz": True,  # float32 subnormals are not flushed to zero
    "fallback_random": True,  # dropout draws its eager masks, which the eager shadow pass must repeat
}


def compiled_round(
    x: Tensor,
    fmt: NumberFormat,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    *,
    granularity: str | None = None,
    power_of_two: bool = True,
) -> Tensor:
    """`round_to_format`, compiled; with a `granularity` also scaled by the amax of the tensor, rows or tiles (`tiles`).

    x: float32, at least 1-d.  One graph per shape and mode serves all formats and seeds.  The result equals that of
    eager rounding bit for bit; stochastic rounding draws the same numbers.  Raises TypeError for another dtype.
    """
    return _round(x, fmt, rounding, generator, granularity, power_of_two, counting=False)[0]


def compiled_round_and_count(
    x: Tensor,
    fmt: NumberFormat,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    *,
    granularity: str | None = None,
    power_of_two: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `compiled_round`, with counts: (rounded, float32 counts in the order of `counters.COUNTERS`)."""
    return _round(x, fmt, rounding, generator, granularity, power_of_two, counting=True)


def _round(
    x: Tensor,
    fmt: NumberFormat,
    rounding: Rounding,
    generator: torch.Generator | None,
    granularity: str | None,
    power_of_two: bool,
    counting: bool,
) -> tuple[Tensor, Tensor]:
    if x.dtype != torch.float32:
        raise TypeError(f"compiled_round: x has dtype {x.dtype}; formats are simulated in torch.float32")
    scaling = "none" if granularity is None else "dynamic"
    mode = Mode(rounding, scaling, granularity or "tensor", power_of_two, 1.0)
    stochastic = rounding == "stochastic"
    key = draw_key(generator, x.device) if stochastic else torch.zeros(2, dtype=torch.int32, device=x.device)
    if x.numel() == 0:
        return round_site(x, _spec(fmt, x.device), x, key, mode)
    with torch.no_grad():
        return _graph(mode, counting)(x, _spec(fmt, x.device), key)


@functools.cache
def _spec(fmt: NumberFormat, device: torch.device) -> Tensor:
    return spec_of(fmt, device=device)


@functools.cache
def _graph(mode: Mode, counting: bool) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def rounded(x: Tensor, spec: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        history = torch.zeros(0, dtype=torch.float32, device=x.device)
        values, counts = rounded_with_counts(x, spec, history, key, mode, in_bits=True)
        if counting:
            return values, torch.stack(counts)
        # Returning the amax of blocks, computed anyway, stops Inductor from splitting the loop into two passes.
        return values, counts[-2] if mode.in_blocks and x.device.type == "cpu" else x.new_empty(0)

    return torch.compile(rounded, dynamic=False, options=INDUCTOR_OPTIONS)
