"""Which formats, scales and roundings a model's linear layers get: the part of a config that any model can be given.

No torch: see `config`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from altgrad.config.config_errors import FieldError, problem
from altgrad.config.field_traits import Declared, field
from altgrad.formats import NumberFormat, find_format

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
GemmSite = Literal["weight", "activation", "gradient"]
GEMM_SITES: tuple[GemmSite, ...] = ("weight", "activation", "gradient")
_LARGEST_INTEGER = 2**62  # beyond it neither torch nor parquet counts
NATIVE_FORMATS = ("E4M3", "E5M2")  # what FP8 tensor cores multiply


class Recipe(Declared):
    """How a model's linear layers are rounded: what `quantize_model` needs, for any model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    # fmt: off
    # formats
    format: str = field("BF16", "numeric", "number format of every site not named below", timed=False, moves_baseline=False)
    weight_format: str | None = field(None, "numeric", "format of the weights in the GEMMs and, without masters, at rest", timed=False, moves_baseline=False)
    activation_format: str | None = field(None, "numeric", "format of the GEMM inputs", timed=False, moves_baseline=False)
    gradient_format: str | None = field(None, "numeric", "format of the output gradients of the GEMMs", timed=False, moves_baseline=False)
    layer_formats: dict[str, str] = field({}, "numeric", "glob over layer names -> format of all its sites; the last match counts", in_graph=True)
    rounding: Literal["nearest", "toward_zero", "stochastic"] = field("nearest", "numeric", "rounding of the GEMM operands", in_graph=True)
    overflow: Literal["format", "saturate", "inf"] = field("format", "numeric", "beyond the largest finite value: the format's own rule, the largest finite value, or infinity", timed=False)
    # scaling
    scaling: Literal["none", "dynamic", "delayed"] = field("dynamic", "numeric", "no scale, from the current amax, or (activations and gradients) from the amax of earlier steps", in_graph=True, moves_baseline=False)
    scale_granularity: Literal["tensor", "row", "block"] = field("tensor", "numeric", "one scale per tensor, per row of the last dimension, or per block of 32 along it", in_graph=True, moves_baseline=False)
    scale_power_of_two: bool = field(True, "numeric", "scales are powers of two (exact to apply) instead of real numbers", in_graph=True)
    amax_history: int = field(16, "numeric", "steps of amax history for delayed scaling", moves_baseline=False, ge=1)
    amax_factor: Positive = field(1.0, "numeric", "the scale of activations and gradients is chosen for amax times this; below 1 the largest values overflow", in_graph=True)
    # weights at rest
    master_weights: bool = field(True, "numeric", "optimizer updates an FP32 copy; false: the weight lives on its grid")
    update_rounding: Literal["nearest", "stochastic"] = field("nearest", "numeric", "write-back rounding without master weights", moves_baseline=False, only_with=("master_weights", False))
    # products
    gemm_dtype: Literal["auto", "float32", "bfloat16"] = field("auto", "numeric", "what the GEMMs multiply, summing in float32; auto: bfloat16 on CUDA in layers where it is exact, else float32", in_graph=True, moves_baseline=False)
    native_fp8: bool = field(False, "numeric", "multiply E4M3 and E5M2 codes on FP8 tensor cores; row scales then lie along what each GEMM contracts", in_graph=True)
    seed: int = field(42, "seed", "initial weights, batches and stochastic rounding", ge=0)
    # fmt: on

    if not TYPE_CHECKING:  # for a type checker the fields are the signature

        def __init__(self, /, **fields: Any) -> None:
            """Raises FieldError, a line for each field that is wrong."""
            try:
                super().__init__(**fields)
            except ValidationError as error:
                known = tuple(type(self).model_fields)
                raise FieldError(problem(detail, known) for detail in error.errors()) from None

    @field_validator("*", mode="before")
    @classmethod
    def _as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers of other kinds (1e3 steps, NumPy's) as the field's; never booleans or strings, which are none."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return value
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        if isinstance(number, int) and abs(number) > _LARGEST_INTEGER:
            raise ValueError("a number below 2^62 is expected")
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = [annotation, *get_args(annotation)]
        if any(isinstance(kind, bool) for kind in kinds):  # a Literal takes 1 for True
            raise ValueError(f"expected {', '.join(str(kind) for kind in kinds[1:])}")
        if int in kinds and abs(number) <= _LARGEST_INTEGER and number == int(number):
            return int(number)
        return float(number) if float in kinds else value

    @field_validator("format", "weight_format", "activation_format", "gradient_format")
    @classmethod
    def _registered_name(cls, name: str | None) -> str | None:
        return None if name is None else find_format(name).name

    @field_validator("layer_formats")
    @classmethod
    def _registered_names(cls, names: dict[str, str]) -> dict[str, str]:
        return {pattern: find_format(name).name for pattern, name in names.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scaling == "delayed" and self.scale_granularity != "tensor":
            raise ValueError(
                f"scale_granularity={self.scale_granularity!r} with scaling='delayed': rows of the next batch have no "
                "history; use scale_granularity='tensor' or scaling='dynamic'"
            )
        if not self.master_weights and self.scaling != "none" and not self.scale_power_of_two:
            raise ValueError(
                "scale_power_of_two=False with master_weights=False: a real scale moves the whole grid at every step; "
                "use scale_power_of_two=true, scaling='none' or master_weights=true"
            )
        for site in GEMM_SITES:
            self.format_at("", site)
        return self

    @model_validator(mode="after")
    def _multipliable(self) -> Self:
        """Refuse products that were asked for and are not what they claim to be."""
        named = [self.format_at("", site) for site in GEMM_SITES] + [
            find_format(n) for n in self.layer_formats.values()
        ]
        if self.gemm_dtype == "bfloat16":
            for fmt in named:
                if obstacle := self.bfloat16_obstacle(fmt):
                    raise ValueError(f"gemm_dtype='bfloat16': {obstacle}; use gemm_dtype='auto' or 'float32'")
        if self.native_fp8 and (obstacle := self._native_obstacle(named)):
            raise ValueError(f"native_fp8=True: {obstacle}")
        return self

    def bfloat16_obstacle(self, fmt: NumberFormat) -> str | None:
        """Why values rounded to a format do not survive a cast to bfloat16, in a few words; None where they do.

        At most 7 mantissa bits and a power-of-two scale leave at most 8 significant bits, which bfloat16 has.  Range
        is no obstacle: a value of normal float32 magnitude rounds to zero or to a normal one, and bfloat16 has these.
        What is smaller than 2^-126 to begin with loses its bits below 2^-133.
        """
        if fmt.mantissa_bits > 7:
            return f"{fmt} has {fmt.mantissa_bits} mantissa bits, bfloat16 has 7"
        if self.scaling != "none" and not self.scale_power_of_two and fmt.scaled:
            return f"{fmt} with scale_power_of_two=false needs more than bfloat16's 7 mantissa bits"
        return None

    def _native_obstacle(self, named: Sequence[NumberFormat]) -> str | None:
        """Why FP8 tensor cores cannot multiply what this recipe rounds, in one line."""
        for fmt in named:
            if fmt.name not in NATIVE_FORMATS:
                return f"{fmt} at a site; FP8 tensor cores multiply {' and '.join(NATIVE_FORMATS)}"
        if self.scale_granularity == "block":
            return "scale_granularity='block' has no FP8 GEMM here; use 'tensor' or 'row'"
        if self.scale_granularity == "row" and not self.master_weights:
            return "scale_granularity='row' rounds a weight anew for dx, off the grid it lives on; use 'tensor'"
        if self.gemm_dtype != "auto":
            return f"the GEMMs multiply codes of 8 bits, not gemm_dtype={self.gemm_dtype!r}; leave that out"
        wide = [site for site in GEMM_SITES if self.format_at("", site).name == "E5M2"]
        if len(wide) > 1 or "E5M2" in self.layer_formats.values():
            return "no FP8 GEMM multiplies E5M2 by E5M2; use E5M2 at one site at most, such as gradient_format"
        return None

    def format_at(self, layer: str, site: GemmSite) -> NumberFormat:
        """The format of a site of a layer: the last matching `layer_formats` glob, else the site's, else `format`."""
        name = {
            "weight": self.weight_format,
            "activation": self.activation_format,
            "gradient": self.gradient_format,
        }[site] or self.format
        for pattern, layer_format in self.layer_formats.items():
            if fnmatch.fnmatchcase(layer, pattern):
                name = layer_format
        fmt = find_format(name)
        if self.overflow == "inf" and not fmt.has_inf:
            raise ValueError(f"overflow='inf': {name} has no infinity; use overflow='saturate' or E5M2")
        return fmt if self.overflow == "format" else dataclasses.replace(fmt, overflow=self.overflow)
