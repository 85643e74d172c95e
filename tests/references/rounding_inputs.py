"""Formats and float32 inputs on which rounding is tested: registered and edge formats; critical points,
every bfloat16 pattern, a million float32 patterns.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from altgrad.formats import FORMATS, NumberFormat, find_format
from altgrad.quantization.kernel.round import round_to_format
from tests.references.oracles import SMALLEST, grid

EIGHT_BITS = [fmt for fmt in FORMATS.values() if fmt.bits == 8]
# At the edges of what float32 carries, with one bit, and with a largest value of even code, where the tie at the
# edge of overflow stays inside.
EDGES = [
    *(find_format(name) for name in ("E1M6b126", "E1M6b-126", "E8M6", "E0M15", "E0M1", "E1M0", "E7M7b0", "E4M3b11")),
    NumberFormat("e8m0_inf", 8, 0, bias=127, specials="ieee", overflow="inf", scaled=False),
]
OVERFLOWING = [
    dataclasses.replace(fmt, name=f"{fmt.name}_{rule}", overflow=rule)
    for fmt in FORMATS.values()
    for rule in ("saturate", "inf")
    if fmt.has_inf and fmt.overflow != rule and fmt.bits <= 16
]
ALL = [*(fmt for fmt in FORMATS.values() if fmt.bits <= 16), *EDGES, *OVERFLOWING]
SPECIAL = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, SMALLEST, -SMALLEST, 2.0**-126, -3.4e38, 3.4028235e38])


def critical_points(fmt: NumberFormat) -> np.ndarray:
    """Every value, midpoint and both neighbours of each midpoint, of both signs, and the special values."""
    values = np.array([float(value) for value in grid(fmt)])
    middles = ((values[:-1] + values[1:]) / 2).astype(np.float32)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    points = np.concatenate(
        [values, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))]
    )
    return np.concatenate([points, -points, SPECIAL])


def every_bfloat16() -> np.ndarray:
    return (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)


def million(fmt: NumberFormat) -> np.ndarray:
    """Half a million random bit patterns, and as many with exponents from 3 below to 3 above the format's."""
    random = np.random.default_rng(fmt.max_index)
    bits = random.integers(0, 2**32, 500_000, dtype=np.uint32)
    exponents = random.integers(
        max(0, 124 + math.frexp(fmt.min_subnormal)[1]), min(255, 129 + math.frexp(fmt.max)[1]), 500_000, dtype=np.uint32
    )
    return np.concatenate([bits, bits & 0x807FFFFF | exponents << 23]).view(np.float32)


def wide(x: np.ndarray) -> np.ndarray:
    """float32 as float64, without numpy's warning about signalling NaNs."""
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def everything(fmt: NumberFormat) -> np.ndarray:
    return np.concatenate([critical_points(fmt), every_bfloat16(), million(fmt)])


def rounded(x: np.ndarray, fmt: NumberFormat, rounding: str = "nearest") -> np.ndarray:
    return round_to_format(torch.from_numpy(x), fmt, rounding).numpy()
