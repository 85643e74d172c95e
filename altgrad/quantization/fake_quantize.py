"""Rounding as a function of a tensor, with the arithmetic of the quantised layers.

y = fake_quantize(x, Cast(format="E2M1", block="1x16", scale_rule="real", scale_format="E4M3"))
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from altgrad.config.cast import Cast, Dimension
from altgrad.formats import find_format
from altgrad.quantization.gemms.straight_through import differentiable_once
from altgrad.quantization.kernel.random import draw_key
from altgrad.quantization.kernel.rotation import rotated, unrotated
from altgrad.quantization.kernel.scaled_rounding import Mode, mode_of, rounded_and_scale, spec_for

StraightThrough = Literal["plain", "clipped"]


def fake_quantize(
    x: Tensor,
    cast: Cast | str,
    dimension: Dimension = "last",
    straight_through: StraightThrough = "plain",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Round x by a cast, or to the format of that name with one scale for the tensor; same shape and dtype.

    x: any floating dtype and shape; it is rounded in float32.
    dimension: the one along which rows, tiles and a rotation run; "first" takes all dimensions but the last as one.
    straight_through: the gradient passes unchanged ("plain"), or is zero where |x| exceeds the largest value of the
    format times its scale ("clipped").  A rotation R is undone in the result, which is Q(x R) R^T.
    generator: for stochastic rounding and redrawn rotations; torch's default one if None.
    Raises TypeError for another x than a floating tensor and another cast than a Cast or a name, ValueError for an
    unknown name and for delayed scaling, which needs a history.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"fake_quantize: x is {_kind(x)}; it must be a floating tensor")
    if isinstance(cast, str):
        find_format(cast)  # whose error is one line
        cast = Cast(format=cast)
    if not isinstance(cast, Cast):
        raise TypeError(f"fake_quantize: cast is {_kind(cast)}; it must be a Cast, or the name of a format")
    for name, value, known in (
        ("dimension", dimension, get_args(Dimension)),
        ("straight_through", straight_through, get_args(StraightThrough)),
    ):
        if value not in known:
            raise ValueError(f"fake_quantize: {name}={value!r}; known: {', '.join(known)}")
    if not x.ndim:
        return fake_quantize(x.reshape(1), cast, dimension, straight_through, generator).reshape(())
    if cast.scaling == "delayed":
        raise ValueError("fake_quantize: scaling='delayed' needs the amax of earlier steps; use 'dynamic' or 'static'")
    mode = mode_of(cast, dimension)
    drawn = cast.rounding == "stochastic" or mode.redrawn
    key = draw_key(generator, x.device) if drawn else torch.zeros(2, dtype=torch.int32, device=x.device)
    rounded: Tensor = _FakeQuantize.apply(x, cast, mode, key, straight_through == "clipped")
    return rounded


def _kind(found: object) -> str:
    return f"of dtype {found.dtype}" if isinstance(found, Tensor) else repr(found)[:60]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Cast, mode: Mode, key: Tensor, clipped: bool) -> Tensor:
        fmt = cast.number_format
        spec = spec_for(cast, fmt, 0, x.device)
        fixed = torch.full((1,), cast.static_scale, dtype=torch.float32, device=x.device)
        signs_key = key if mode.redrawn else None
        values = x.float()
        if mode.hadamard and x.numel():
            values = rotated(values, mode.hadamard, mode.last, signs_key)
        rounded, _, inverse = rounded_and_scale(values, spec, fixed, key, mode)
        if clipped:
            ctx.save_for_backward((values * inverse).abs() <= fmt.max)
        ctx.how = (mode, signs_key, x.dtype, x.shape) if clipped else None
        if mode.hadamard and x.numel():
            rounded = unrotated(rounded, x.shape, mode.hadamard, mode.last, signs_key)
        return rounded.to(x.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        if ctx.how is not None:
            (inside,) = ctx.saved_tensors
            mode, signs_key, dtype, shape = ctx.how
            gradient = gradient.float()
            if mode.hadamard and gradient.numel():
                turned = rotated(gradient, mode.hadamard, mode.last, signs_key) * inside
                gradient = unrotated(turned, shape, mode.hadamard, mode.last, signs_key).to(dtype)
            else:
                gradient = (gradient * inside).to(dtype)
        return gradient, None, None, None, None
