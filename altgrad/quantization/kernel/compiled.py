"""Compiled rounding: one pass over the data, one graph for all formats.

Beside `CompiledRounding`, which is called with a format, there are the roundings of what is stored between steps:
`round_each_compiled` of moments and `round_stored_compiled` of weights.  Eagerly these are some twenty passes over
every weight and moment of the model, several times the rest of a compiled step.

The options matter.  By default Inductor stores an intermediate that has several readers, which splits rounding with
counts into two passes over the data; with these thresholds it keeps intermediates in registers.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from altgrad import torch_private
from altgrad.config.cast import Dimension
from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.random import draw_key
from altgrad.quantization.kernel.round import Rounding, spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site, rounded_each, rounded_with_counts
from altgrad.quantization.kernel.tiles import tile_of

Made = TypeVar("Made")

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
    if device.type == "cpu":
        return INDUCTOR_OPTIONS
    return INDUCTOR_OPTIONS | _ON_A_GPU | torch_private.last_kernels_together()


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
            self.rounding,
            scaling,
            self.granularity or "tensor",
            self.power_of_two,
            "1.0",
            last=self.dimension == "last",
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


def round_each_compiled(x: Tensor, spec: Tensor, salts: Tensor, key: Tensor, mode: Mode) -> None:
    """`rounded_each`, compiled and in place: x becomes what that returns, bit for bit."""

    def eagerly() -> None:
        x.copy_(rounded_each(x, spec, salts, key, mode))

    _or_eagerly(mode, lambda: _graph_of_each(mode, _fixed_shape(x, mode))(_own(x), spec, salts, key), eagerly)


def round_stored_compiled(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """`round_site`, compiled, for a weight of any size: the same values bit for bit, counts within float32 rounding."""
    if x.numel() == 0 or mode.shares_amax:
        return round_site(x, spec, history, key, mode)
    shape = _fixed_shape(x, mode)
    flat = _own(x.reshape(-1)) if shape is None and mode.granularity == "tensor" else x
    values, counts = _or_eagerly(
        mode,
        lambda: _graph_of_stored(mode, shape)(flat, spec, history, key),
        lambda: round_site(flat, spec, history, key, mode),
    )
    return values.view_as(x), counts


_failed: set[Mode] = set()


def _or_eagerly(mode: Mode, compiled: Callable[[], Made], eagerly: Callable[[], Made]) -> Made:
    """What is compiled changes no value: where the compiler fails, training goes on without it, and says so once."""
    if mode in _failed:
        return eagerly()
    try:
        return compiled()
    except torch_private.compiler_failure() as error:
        _failed.add(mode)
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        warnings.warn(
            f"the compiler failed ({said:.200}); moments and stored weights are rounded eagerly", stacklevel=2
        )
        return eagerly()


def _own(view: Tensor) -> Tensor:
    """The same memory, but no view: of a view Dynamo also guards its base, and compiles anew if that is square."""
    return view.data


def _fixed_shape(x: Tensor, mode: Mode) -> torch.Size | None:
    """The shape, if each needs a graph of its own.

    Where Inductor does not know it, it makes slow loops of tiles, and code that does not compile of random numbers.
    """
    return None if tile_of(mode.granularity) is None and mode.rounding != "stochastic" else x.shape


@functools.cache
def _graph_of_each(mode: Mode, shape: torch.Size | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    def round_in_place(x: Tensor, spec: Tensor, salts: Tensor, key: Tensor) -> None:
        x.copy_(rounded_each(x, spec, salts, key, mode))

    return _compiled(round_in_place, dynamic=shape is None)


@functools.cache
def _graph_of_stored(
    mode: Mode, shape: torch.Size | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def rounded(x: Tensor, spec: Tensor, history: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        values, counts = rounded_with_counts(x, spec, history, key, mode, in_bits=True)
        return values, torch.stack(counts)

    return _compiled(rounded, dynamic=shape is None)


@functools.cache
def _graph(mode: Mode, counting: bool) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def rounded(x: Tensor, spec: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        history = torch.zeros(0, dtype=torch.float32, device=x.device)
        values, counts = rounded_with_counts(x, spec, history, key, mode, in_bits=True)
        if counting:
            return values, torch.stack(counts)
        # Returning the amax of blocks, computed anyway, stops Inductor from splitting the loop into two passes.
        return values, counts[-2] if mode.in_blocks and x.device.type == "cpu" else x.new_empty(0)

    return _compiled(rounded, dynamic=False)


def _compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    """With a code object of its own: Dynamo compiles one at most eight times, and then runs it eagerly."""
    assert isinstance(function, types.FunctionType)
    own = types.FunctionType(function.__code__.replace(), globals(), closure=function.__closure__)
    return torch.compile(own, dynamic=dynamic, options=INDUCTOR_OPTIONS)
