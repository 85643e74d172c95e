"""How well a cast, of a format alone or of a recipe, would round a stored tensor, from its histogram.

A histogram does not say which values lie beside each other: the values of a block are taken as independent.  Then the
largest of n values is known in distribution, and the noise is exact: no random number is drawn.  Values are rounded by
`altgrad.format_fit`, the kernel's only copy without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from altgrad.config.cast import Cast
from altgrad.config.operands import Operand
from altgrad.config.published import published_names
from altgrad.config.recipe import Recipe
from altgrad.format_fit import (
    PER_BINADE,
    Floats,
    Weighted,
    from_distribution,
    from_histogram,
    grid,
    rounded,
    scale_exponents,
)
from altgrad.formats import FORMATS, NumberFormat

OPERANDS: Mapping[str, Operand] = {"weight": Operand("fprop", "weight"), "gradient": Operand("dgrad", "gradient")}
_REAL_SCALES = 48  # real scales that are told apart within a binade
_RARE = 1e-9


class CastFit(NamedTuple):
    """SQNR in dB, and shares of the non-zero values that become zero, or lie beyond the largest finite one."""

    sqnr_db: float
    underflow: float
    overflow: float


class Histogram(NamedTuple):
    """A stored tensor: counts of floor(log2 |x|) from `first_exponent` on, and of zeros; its amax, if it is known."""

    first_exponent: int
    exponents: tuple[int, ...]
    zeros: int
    amax: float | None = None

    @property
    def values(self) -> Weighted:
        """The distribution of its magnitudes."""
        return from_histogram(self.first_exponent, self.exponents, self.zeros, self.amax)

    def with_amax(self, amax: float | None) -> Histogram:
        """With an amax that was recorded for it, unless that is of another tensor: it must lie in the top binade."""
        top = self.first_exponent + max((at for at, count in enumerate(self.exponents) if count), default=0)
        fits = amax is not None and 2.0**top <= amax < 2.0 ** (top + 1)
        return self._replace(amax=amax if fits else None)

    @property
    def size(self) -> int:
        """Number of finite values."""
        return sum(self.exponents) + self.zeros

    @property
    def in_top_binade(self) -> int:
        """Number of values in the highest binade that has any."""
        return next((count for count in reversed(self.exponents) if count), 0)


def rotates_weight(config: Mapping[str, Any], layer: str) -> bool:
    """Whether the forward GEMMs of a run with this config may read the layer's weight rotated, in any of its phases.

    What is recorded for the weight, such as its amax, is then that of the rotated one, and a histogram is of the weight
    itself.  True also for a config that this version cannot read.
    """
    try:
        recipe = Recipe(**{name: value for name, value in config.items() if name in Recipe.model_fields})
        phases = [recipe.in_phase(phase) for phase in range(len(recipe.phases) + 1)]
        return any(phase.casts_at(layer)[OPERANDS["weight"]].hadamard for phase in phases)
    except (TypeError, ValueError):
        return True


def recipe_casts(site: str) -> dict[Cast, list[str]]:
    """The cast of a site's operand -> the published recipes that have it, before their first phase."""
    found: dict[str, tuple[Cast, list[str]]] = {}
    for name in published_names():
        cast = _casts_of(name)[OPERANDS[site]]
        found.setdefault(str(cast), (cast, []))[1].append(name)  # its text leaves out what has no effect
    return dict(found.values())


@cache
def _casts_of(name: str) -> Mapping[Operand, Cast]:
    return Recipe(recipe=name).in_phase(0).casts_at()


@lru_cache(maxsize=2048)
def cast_fit(tensor: Histogram, cast: Cast) -> CastFit:
    """The effect of a cast on a tensor with a finite value other than zero.

    A rotated tensor is taken as Gaussian with the same power, a row as one of a square matrix, a delayed scale as a
    current one.
    """
    fmt, data = cast.number_format, tensor.values
    if fmt.bits > 16:
        return CastFit(float("inf"), 0.0, 0.0)
    filled = data.weights > 0
    x, weights, zeros = data.magnitudes[filled], data.weights[filled], data.zeros
    power = float(np.sum(weights * x**2))
    if cast.hadamard:
        normal = from_distribution("Gaussian")
        x, weights, zeros = normal.magnitudes * np.sqrt(power), normal.weights, 0.0
    noise = lost = beyond = 0.0
    for scale, share in _scales(x, weights, zeros, cast, fmt, tensor):
        scaled = x / scale
        errors, is_zero = _squared_errors(scaled, fmt, cast.rounding)
        noise += float(np.sum(share * errors)) * scale**2
        lost += float(np.sum(share * is_zero))
        beyond += float(np.sum(share[scaled > fmt.max]))
    whole = float(weights.sum())
    return CastFit(float(10 * np.log10(power / noise)) if noise > 0 else float("inf"), lost / whole, beyond / whole)


def _scales(
    x: Floats, weights: Floats, zeros: float, cast: Cast, fmt: NumberFormat, tensor: Histogram
) -> Iterator[tuple[float, Floats]]:
    """Each scale that occurs, with the weight of each point that has it; x ascending."""
    if cast.scaling in ("none", "static") or not fmt.scaled:
        yield (cast.static_scale if cast.scaling == "static" else 1.0), weights
        return
    amaxes = x * cast.amax_factor
    scales = _scales_of(amaxes, cast, fmt)
    is_real = cast.scale_format != "E8M0"  # then neighbouring scales count as one
    finest = np.round(np.log2(scales) * _REAL_SCALES) if is_real else scales
    ends = [*np.flatnonzero(np.diff(finest)), len(x) - 1]  # the last point that each scale may come from
    if cast.block == "tensor" and tensor.amax is not None and not cast.hadamard:
        yield float(_scales_of(np.array([tensor.amax * cast.amax_factor]), cast, fmt)[0]), weights
        return
    if cast.block == "tensor":
        top = min(PER_BINADE, len(x))  # the amax lies anywhere in the highest binade
        below_top, inside = len(x) - top, np.cumsum(weights[-top:]) / weights[-top:].sum()
        up_to = np.where(np.array(ends) < below_top, 0.0, inside[np.maximum(np.array(ends) - below_top, 0)])
        reached = np.minimum(up_to, 1.0) ** max(tensor.in_top_binade, 1)
        for end, share in zip(ends, np.diff(reached, prepend=0.0), strict=True):
            if share > 0:
                held = np.where(np.arange(len(x)) <= end, weights, 0.0)
                yield float(scales[end]), held * share * (weights.sum() / held.sum())
        return
    size = round(tensor.size**0.5) if cast.tile is None else cast.tile[0] * cast.tile[1]
    below = np.minimum(zeros + np.cumsum(weights), 1.0)  # probability of a value up to each point
    previous = np.zeros(len(x))
    for end in ends:
        # this value and all others of its block lie up to `end`, so that the amax does
        reached = np.where(np.arange(len(x)) <= end, below[end] ** (size - 1), 0.0)
        share = weights * (reached - previous)
        previous = reached
        if share.sum() > _RARE * weights.sum():
            yield float(scales[end]), share


def _scales_of(amaxes: Floats, cast: Cast, fmt: NumberFormat) -> Floats:
    """The scale for each amax, by the rules of `altgrad.quantization.kernel.scale`; the last is that of the tensor."""
    if cast.scale_format == "FP32":
        return np.clip(amaxes / fmt.max, 2.0**-126, 2.0**126)
    if cast.scale_format == "E4M3":
        e4m3 = FORMATS["E4M3"]
        whole = amaxes[-1] / (e4m3.max * fmt.max)
        return whole * rounded(np.maximum(amaxes / fmt.max / whole, e4m3.min_normal or 0.0), e4m3)
    (fraction, exponent), (top_fraction, top_exponent) = np.frexp(amaxes), np.frexp(float(fmt.max))
    carries = {
        "ceil": fraction > top_fraction,
        "floor": np.zeros(len(amaxes), bool),
        "even": fraction * 2 >= 2 - 2.0 ** -(fmt.mantissa_bits + 1),
        "ceil_amax": fraction > 0.5,
    }
    return np.ldexp(1.0, np.clip(exponent - int(top_exponent) + carries[cast.scale_rule], *scale_exponents(fmt)))


def _squared_errors(x: Floats, fmt: NumberFormat, rounding: str) -> tuple[Floats, Floats]:
    """(expected squared error, probability of zero) of each magnitude, in units of the scale."""
    if rounding == "nearest":
        nearest = rounded(x, fmt)
        return (x - nearest) ** 2, (nearest == 0).astype(np.float64)
    values = grid(fmt)
    at = np.minimum(np.searchsorted(values, x, side="right") - 1, len(values) - 1)
    low, high = values[at], values[np.minimum(at + 1, len(values) - 1)]
    if rounding == "toward_zero":
        return (x - low) ** 2, (low == 0).astype(np.float64)
    gap = np.where(high > low, high - low, 1.0)
    up = np.clip((x - low) / gap, 0.0, 1.0)
    errors = np.where(high > low, (x - low) * (high - x), (x - low) ** 2)
    return errors, np.where(low == 0, 1 - up, 0.0)


class Ranked(NamedTuple):
    """A place in the ranking: a format alone (`recipes` is empty), or a cast of recipes."""

    label: str
    cast: Cast
    recipes: tuple[str, ...]
    fit: CastFit


def ranking(tensor: Histogram, site: str, formats: Sequence[NumberFormat], scaled: bool) -> list[Ranked]:
    """Formats, each with one scale per tensor, and the casts of all published recipes, the highest SQNR first.

    Recipes that round the tensor alike share a place.
    """
    found = []
    for fmt in formats:
        cast = Cast(format=fmt.name, scaling="dynamic" if scaled else "none")
        found.append(Ranked(fmt.name, cast, (), cast_fit(tensor, cast)))
    for cast, names in recipe_casts(site).items():
        found.append(Ranked(", ".join(names), cast, tuple(names), cast_fit(tensor, cast)))
    return sorted(found, key=lambda one: -one.fit.sqnr_db)
