"""Compiled rounding: one pass over the data, one graph for all formats.

The options matter.  By default Inductor stores an intermediate that has several readers, which splits rounding with
counts into two passes over the data; with these thresholds it keeps intermediates in registers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altgrad.config.cast import Dimension
from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.random import draw_key
from altgrad.quantization.kernel.round import Rounding, spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site, rounded_with_counts

# For `torch.compile(..., options=INDUCTOR_OPTIONS)` of a rounding alone; of a step see `inductor_options`.
INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_opcount_threshold": 128,
    "realize_reads_threshold": 8,
    "eager_numerics.division_rounding": True,  # Triton's division errs by 2 ULP; real scales would differ from eager's
    "eager_numerics.disable_ftz": True,  # float32 subnormals are not flushed to zero
    "fallback_random": True,  # dropout draws its eager masks, which the eager shadow pass must repeat
}


# A GPU waits for its memory: there a rounding is part of the kernel that computes its operand, however long that gets.
_ON_A_GPU: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_opcount_threshold": 1024,
    "realize_acc_reads_threshold": 64,  # a rounding reads a dozen fields of its format
}


def inductor_options(device: torch.device) -> dict[str, str | int | bool | Callable[..., Any]]:
    """Options of `torch.compile` for a training step on a device."""
    return INDUCTOR_OPTIONS if device.type == "cpu" else INDUCTOR_OPTIONS | _ON_A_GPU


@dataclass(frozen=True)
class CompiledRounding:
    """`round_to_format`, compiled; with a `granularity` also scaled by the amax of the tensor, rows or tiles (`tiles`).

    One graph per shape and mode serves all formats and seeds.  The result equals that of eager rounding bit for bit;
    stochastic rounding draws the same numbers.  `dimension`: along which rows and tiles run.
    """

    fmt: NumberFormat
    rounding: Rounding = "nearest"
    granularity: str | None = None
    power_of_two: bool = True
    dimension: Dimension = "last"

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x rounded, in its shape.  x: float32, at least 1-d.  Raises TypeError for another dtype."""
        return self._round(x, generator, counting=False)[0]

    def with_counts(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(x rounded, float32 counts in the order of `counters.COUNTERS`).  Raises TypeError as a call does."""
        return self._round(x, generator, counting=True)

    def _round(self, x: Tensor, generator: torch.Generator | None, counting: bool) -> tuple[Tensor, Tensor]:
        if x.dtype != torch.float32:
            raise TypeError(f"compiled rounding: x has dtype {x.dtype}; formats are simulated in torch.float32")
        scaling = "none" if self.granularity is None else "dynamic"
        mode = Mode(
            self.rounding, scaling, self.granularity or "tensor", self.power_of_two, 1.0, last=self.dimension == "last"
        )
        stochastic = self.rounding == "stochastic"
        key = draw_key(generator, x.device) if stochastic else torch.zeros(2, dtype=torch.int32, device=x.device)
        if x.numel() == 0:
            return round_site(x, _spec(self.fmt, x.device), x, key, mode)
        with torch.no_grad():
            return _graph(mode, counting)(x, _spec(self.fmt, x.device), key)


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

    # A code object of its own: Dynamo compiles one at most eight times, and then runs it eagerly.
    own = types.FunctionType(rounded.__code__.replace(), globals(), closure=rounded.__closure__)
    return torch.compile(own, dynamic=False, options=INDUCTOR_OPTIONS)
