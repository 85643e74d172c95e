"""A cast: how one operand of one GEMM is rounded.  Rounding belongs to the operand, not to the tensor.

Hardware lays blocks along the contraction dimension of a GEMM, so that a scale can be taken out of the sum of products.
The weight W (out, in) of a linear layer enters two GEMMs: `fprop` (y = x W^T) contracts over in, the last dimension of
W, and `dgrad` (dx = dy W) over out, its first.  With one scale per 32 values the two GEMMs see W rounded differently.

No torch: see `train_config`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from altgrad.formats import NumberFormat, find_format

Gemm = Literal["fprop", "dgrad", "wgrad"]
GemmSite = Literal["weight", "activation", "gradient"]
Dimension = Literal["first", "last"]  # of an operand's tensor, reshaped to two dimensions: all but the last, the last

GEMM_SITES: tuple[GemmSite, ...] = ("weight", "activation", "gradient")
# GEMM -> its two operands, each with the dimension that is contracted, of x (tokens, in), W (out, in), dy (tokens, out)
GEMMS: Mapping[Gemm, Mapping[GemmSite, Dimension]] = {
    "fprop": {"activation": "last", "weight": "last"},  # y = x W^T, over in
    "dgrad": {"gradient": "last", "weight": "first"},  # dx = dy W, over out
    "wgrad": {"gradient": "first", "activation": "first"},  # dW = dy^T x, over tokens
}

_TILE = re.compile(r"(\d+)x(\d+)", re.ASCII)
_LEAST_SCALE, _LARGEST_FLOAT32 = 2.0**-126, 2.0**128 * (1 - 2.0**-24)  # as `kernel.scale` keeps scales, 2^-126 to 2^126
_LARGEST_HADAMARD = 1024
_BFLOAT16_MANTISSA = 7
_LARGEST_CODE = 2.0**48  # a sum of 2^24 products of two codes stays in the range of float32


def _normal_block(value: Any) -> Any:
    """The spelling with both sizes: 32 and "32" become "1x32"."""
    if isinstance(value, bool):
        return value
    return f"1x{value}" if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else value


class Cast(BaseModel):
    """How an operand is rounded.  A cast to BF16 or FP32, which are never scaled, is called "high precision".

    FP16 has a scale only with `scale_fp16`: it reaches from 2^-24 to 65504, so that a scale decides what becomes zero
    or infinite.  BF16, TF32 and FP32 have float32's range, in which no scale helps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # fmt: off
    format: str = Field("BF16", description="number format of the rounded values")
    overflow: Literal["format", "saturate", "inf"] = Field("format", description="result for values beyond the largest finite one: by the format's own rule, the largest finite value, or infinity")
    block: Annotated[str, BeforeValidator(_normal_block)] = Field("tensor", description="which values share a scale: the tensor, each row, or tiles AxB with A values across and B along the dimension that `axis` names (1x32, 128x128)")
    axis: Literal["contraction", "last"] = Field("contraction", description="rows and blocks run along the contraction dimension of the GEMM, or along the tensor's last dimension")
    scaling: Literal["none", "dynamic", "delayed", "static"] = Field("dynamic", description="how the scale is chosen: none, from the current amax (dynamic), from the amax of earlier steps (delayed), or fixed (static)")
    scale_rule: Literal["ceil", "floor", "even", "ceil_amax", "real"] = Field("ceil", description="how an amax becomes a scale: ceil: smallest power of two that keeps amax in range; floor: the OCP MX rule, under which the largest values may saturate; even: power of two for the amax rounded to the element's mantissa; ceil_amax: power of two for the amax rounded up to a power of two; real: amax / largest value")
    scale_format: Literal["E8M0", "FP32", "E4M3"] = Field("E8M0", description="format in which a scale is stored; E4M3: one per block, multiplied by one FP32 scale per tensor (two-level scale)")
    static_scale: Annotated[float, Field(gt=0)] = Field(1.0, description="the fixed scale; used if scaling is static")
    scale_fp16: bool = Field(False, description="scale FP16 too, which is left unscaled otherwise")
    amax_history: int = Field(16, ge=1, description="number of steps whose amax is remembered; used if scaling is delayed")
    amax_factor: Annotated[float, Field(gt=0)] = Field(1.0, description="the scale is chosen for amax times this factor (a margin); below 1 the largest values overflow")
    rounding: Literal["nearest", "toward_zero", "stochastic"] = Field("nearest", description="rounding mode of the operand")
    hadamard: int = Field(0, ge=0, description="block size of the Hadamard rotation of both operands along the contraction dimension; 0: no rotation")
    hadamard_signs: Literal["fixed", "redrawn"] = Field("fixed", description="random signs of the rotation: the same in every step, or drawn anew in each")
    # fmt: on

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fmt = self.number_format
        _ = self.tile
        if self.scale_format == "E8M0" and self.scale_rule == "real":
            raise ValueError(
                "scale_rule='real' with scale_format='E8M0', which has powers of two only; use FP32 or E4M3"
            )
        if self.scale_format != "E8M0" and self.scale_rule != "real":
            raise ValueError(
                f"scale_rule={self.scale_rule!r} chooses a power of two, scale_format={self.scale_format!r} holds a real "
                "scale; use scale_rule='real' or scale_format='E8M0'"
            )
        if self.scale_format == "E4M3" and self.tile is None:
            raise ValueError(f"scale_format='E4M3' with block={self.block!r}: it is for blocks, such as block='1x16'")
        if self.scaling in ("delayed", "static") and self.block != "tensor":
            raise ValueError(
                f"block={self.block!r} with scaling={self.scaling!r}: rows and blocks of the next batch have no history; "
                "use block='tensor' or scaling='dynamic'"
            )
        largest = min(1 / _LEAST_SCALE, _LARGEST_FLOAT32 / fmt.max if fmt.scaled else math.inf)
        if self.scaling == "static" and not _LEAST_SCALE <= self.static_scale <= largest:
            raise ValueError(
                f"static_scale={self.static_scale:g} with format={self.format!r}: from {_LEAST_SCALE:.3g} to {largest:.3g}, "
                "so that scaled values stay in the range of float32"
            )
        if self.scale_fp16 and fmt.name != "FP16":
            raise ValueError(
                f"scale_fp16=True with format={fmt.name!r}: it is for FP16; narrower formats are scaled without it, and "
                "BF16, TF32 and FP32 have float32's range, in which no scale helps"
            )
        if self.scale_fp16 and self.scaling == "none":
            raise ValueError("scale_fp16=True with scaling='none'; choose dynamic, delayed or static, or leave it out")
        if self.hadamard and (self.hadamard & (self.hadamard - 1) or not 2 <= self.hadamard <= _LARGEST_HADAMARD):
            raise ValueError(f"hadamard={self.hadamard}: a power of two from 2 to {_LARGEST_HADAMARD}")
        if fmt.mantissa_bits > 22 and self.scale_rule == "even":
            raise ValueError(f"scale_rule='even' with format={self.format!r}: its mantissa leaves nothing to round")
        return self

    @property
    def number_format(self) -> NumberFormat:
        """The number format of this cast, with `overflow` in place of the format's own rule if one is set."""
        fmt = self.scaled_as_asked(find_format(self.format))
        if self.overflow == "inf" and not fmt.has_inf:
            raise ValueError(f"overflow='inf': {fmt} has no infinity; use overflow='saturate' or E5M2")
        return fmt if self.overflow == "format" else dataclasses.replace(fmt, overflow=self.overflow)

    def scaled_as_asked(self, fmt: NumberFormat) -> NumberFormat:
        """The format, marked as scaled if it is FP16 and this cast asks for that."""
        return dataclasses.replace(fmt, scaled=True) if self.scale_fp16 and fmt.name == "FP16" else fmt

    @property
    def tile(self) -> tuple[int, int] | None:
        """(values across, values along the dimension) that share a scale; None if `block` is "tensor" or "row"."""
        if self.block in ("tensor", "row"):
            return None
        match = _TILE.fullmatch(self.block)
        if match is None or not (0 < int(match[1]) <= 1 << 16 and 0 < int(match[2]) <= 1 << 16):
            raise ValueError(f"block={self.block!r}: tensor, row, or AxB such as 1x32 or 128x128")
        return int(match[1]), int(match[2])

    def dimension(self, contracted: Dimension) -> Dimension | None:
        """The dimension of its tensor along which blocks or rotations lie; None if the result does not depend on it.

        `contracted` is the dimension that the GEMM contracts.  One scale per tensor or per square tile gives the same
        values in both directions, so that two GEMMs can share one rounding.
        """
        if self.hadamard:
            return contracted
        if self.block == "tensor" or (self.tile is not None and self.tile[0] == self.tile[1]):
            return None
        return contracted if self.axis == "contraction" else "last"

    @property
    def redraws(self) -> bool:
        """Whether the signs of the rotation are drawn anew at every step."""
        return self.hadamard > 0 and self.hadamard_signs == "redrawn"

    def bfloat16_obstacle(self, fmt: NumberFormat | None = None) -> str | None:
        """Why bfloat16 cannot hold operands rounded to `fmt` (by default the cast's own format), in few words.

        None if it can.  A format of at most 7 mantissa bits under a power-of-two scale has at most 8 significant bits,
        and bfloat16 has 8.  The range is no obstacle: a normal float32 value is rounded to zero or to another normal
        value, and bfloat16 has the exponents of float32.  Only values below 2^-126, float32's subnormals, lose their
        bits below 2^-133.

        Of values under real scales it holds the codes, if the scales can be applied after the sum.
        """
        fmt = self.number_format if fmt is None else fmt
        if fmt.mantissa_bits > _BFLOAT16_MANTISSA:
            return f"{fmt} has {fmt.mantissa_bits} mantissa bits, bfloat16 has {_BFLOAT16_MANTISSA}"
        if not fmt.scaled or self.scaling == "none" or self.scales_are_powers_of_two:
            return None
        if not self._scale_leaves_the_sum(fmt):
            return f"{fmt} under {self.scale_format} scales of {self.block} needs more than {_BFLOAT16_MANTISSA} mantissa bits"
        if fmt.max > _LARGEST_CODE or fmt.min_subnormal < 1 / _LARGEST_CODE:
            return f"{fmt} has codes from {fmt.min_subnormal:g} to {fmt.max:g}, whose products without scales overflow"
        return None

    def _scale_leaves_the_sum(self, fmt: NumberFormat) -> bool:
        """Whether a GEMM may multiply codes and apply real scales to the sums, as FP8 hardware does.

        It may where a scale is the same for all that one sum contracts: one per tensor, or per row along that.  Of a
        two-level scale that is the tensor's; a code is then multiplied by its tile's E4M3 scale, of 4 significant bits.
        """
        if self.scale_format == "E4M3":
            return fmt.mantissa_bits + 4 <= _BFLOAT16_MANTISSA
        return self.block == "tensor" or (self.block == "row" and self.axis == "contraction")

    @property
    def scales_are_powers_of_two(self) -> bool:
        """Whether all scales are powers of two; a fixed one need not be."""
        if self.scaling == "static":
            return math.frexp(self.static_scale)[0] == 0.5
        return self.scale_format == "E8M0"

    def __str__(self) -> str:
        """The cast in the words of a table: `E4M3 1x32 floor`."""
        fmt = self.number_format
        words = [fmt.name]
        if fmt.scaled:
            words += {
                "none": ["unscaled"],
                "dynamic": [self.block],
                "delayed": [self.block, "delayed"],
                "static": [f"scale {self.static_scale:g}"],
            }[self.scaling]
            if self.scaling in ("dynamic", "delayed") and (self.scale_rule, self.scale_format) != ("ceil", "E8M0"):
                words.append(self.scale_format if self.scale_rule == "real" else self.scale_rule.replace("_", " "))
            if self.dimension("first") == "last":
                words.append("along last")
        if self.rounding != "nearest":
            words.append(self.rounding.replace("_", " "))
        if self.hadamard:
            words.append(f"Hadamard {self.hadamard}" + (" redrawn" if self.hadamard_signs == "redrawn" else ""))
        return " ".join(words)
