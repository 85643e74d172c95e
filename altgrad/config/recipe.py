"""The recipe: formats, scales and roundings of a model's linear layers.  This part of a config applies to any model.

No torch: see `config`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from altgrad.config.cast import GEMM_SITES, Cast, GemmSite
from altgrad.config.fields.config_errors import FieldError, problem
from altgrad.config.fields.field_traits import Declared, field
from altgrad.config.operands import Operand, casts_of, check_gemms
from altgrad.config.optimizer_states import MOMENTS, Moment, MomentCast, moment_cast
from altgrad.config.phases import check_effect, check_phases, fields_after, normal_phases
from altgrad.config.published import (
    check_shorthand,
    published,
    published_fields,
    published_names,
    with_published,
)
from altgrad.formats import NumberFormat, find_format
from altgrad.text.error_hints import did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
_LARGEST_INTEGER = 2**62  # torch and Parquet have 64-bit integers
UpdateRounding = Literal["nearest", "stochastic", "kahan", "eco", "eco_stochastic"]
NATIVE_FORMATS = ("E4M3", "E5M2")  # the formats that FP8 tensor cores multiply


class Recipe(Declared):
    """How a model's linear layers are rounded: the fields that `quantize_model` needs, whatever the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    # fmt: off
    recipe: str | None = field(None, "numeric", "a published recipe (`altgrad recipes`), whose fields are the defaults of all numeric ones", timed=False)
    # formats
    format: str = field("BF16", "numeric", "number format of weights, activations and gradients that have no format of their own in the fields below", timed=False, moves_baseline=False)
    weight_format: str | None = field(None, "numeric", "format of the weights in the GEMMs; without master weights also the format in which they are stored", timed=False, moves_baseline=False)
    activation_format: str | None = field(None, "numeric", "format of the inputs (activations) of the linear layers", timed=False, moves_baseline=False)
    gradient_format: str | None = field(None, "numeric", "format of the gradients at the outputs of the linear layers", timed=False, moves_baseline=False)
    layer_formats: dict[str, str] = field({}, "numeric", "glob over layer names -> format of the layer's weight, activation and gradient; the last matching glob counts", in_graph=True)
    rounding: Literal["nearest", "toward_zero", "stochastic"] = field("nearest", "numeric", "rounding mode of the GEMM operands", in_graph=True)
    overflow: Literal["format", "saturate", "inf"] = field("format", "numeric", "result for values beyond the largest finite one: by the format's own rule, the largest finite value, or infinity", timed=False)
    # scaling
    scaling: Literal["none", "dynamic", "delayed"] = field("dynamic", "numeric", "how scales are chosen: none, from the current amax (dynamic), or for activations and gradients from the amax of earlier steps (delayed)", in_graph=True, moves_baseline=False)
    scale_granularity: str = field("tensor", "numeric", "which values share a scale: the tensor, each row of the last dimension, each block of 32 values, or each tile AxB with A values across and B along the contraction dimension (1x32, 128x128)", in_graph=True, moves_baseline=False)
    block_axis: Literal["contraction", "last"] = field("contraction", "numeric", "blocks and tiles run along the contraction dimension of each GEMM, as on hardware, or along the last dimension of each tensor", in_graph=True, moves_baseline=False)
    scale_power_of_two: bool = field(True, "numeric", "scales are powers of two (exact to apply) instead of real numbers", in_graph=True)
    amax_history: int = field(16, "numeric", "number of steps whose amax delayed scaling remembers", moves_baseline=False, ge=1)
    amax_factor: Positive = field(1.0, "numeric", "the scale of activations and gradients is chosen for amax times this factor; below 1 the largest values overflow", in_graph=True)
    gemms: dict[str, dict[str, Any]] = field({}, "numeric", "exceptions for single GEMMs and operands: GEMM (fprop, dgrad, wgrad) -> fields of a cast for both operands, or operand (weight, activation, gradient) -> fields of its cast", in_graph=True)
    layer_gemms: dict[str, dict[str, dict[str, Any]]] = field({}, "numeric", "glob over layer names -> exceptions as in gemms for the layers that match; they override all other fields, and of several matching globs the last counts", in_graph=True)
    high_first_blocks: float = field(0, "numeric", "number of first blocks of the model that stay in BF16; a value below 1 is a share of all blocks, rounded up", in_graph=True, moves_baseline=False, ge=0)
    high_last_blocks: float = field(0, "numeric", "number of last blocks of the model that stay in BF16; a value below 1 is a share of all blocks, rounded up", in_graph=True, moves_baseline=False, ge=0)
    phases: list[dict[str, Any]] = field([], "numeric", "schedule of casts: list of phases, each with from_step (its first step, counted from 1) or from_share (of the run before it) and the fields that change then: formats, scales, rounding, gemms (whole GEMMs), layer_gemms, layer_formats, high_first_blocks, high_last_blocks", in_graph=True)
    # weights at rest
    master_weights: bool = field(True, "numeric", "true: the optimizer updates FP32 weights, and the GEMMs get rounded copies; false: the stored weight itself is rounded to its format after every step")
    update_rounding: UpdateRounding = field("nearest", "numeric", "rounding mode of the stored weight after each optimizer step, without master weights; kahan: to nearest, the error kept in BF16 and added to the next update; eco, eco_stochastic: to nearest or stochastically, the error fed into the optimizer's momentum", moves_baseline=False, only_with=("master_weights", False))
    # optimizer
    first_moment: dict[str, Any] | None = field(None, "numeric", "rounding of Adam's first moment of every matrix after each step: fields of a cast (format, block: tensor or 1xB, rounding, scaling, scale_rule, scale_format, scale_fp16) and range_expansion; None: FP32")
    second_moment: dict[str, Any] | None = field(None, "numeric", "rounding of Adam's second moment of every matrix after each step: fields of a cast and range_expansion, as for first_moment; None: FP32")
    # products
    attention_gemms: bool = field(False, "numeric", "also round the operands of attention's two products: query and probabilities as activation, key and value as weight", in_graph=True)
    gemm_dtype: Literal["auto", "float32", "bfloat16"] = field("auto", "numeric", "dtype of the operands that the GEMMs multiply; sums are float32; auto: bfloat16 on CUDA in layers whose rounded values, or codes under real scales that can be applied to the sums, bfloat16 holds exactly, else float32", in_graph=True, moves_baseline=False)
    native_fp8: bool = field(False, "numeric", "multiply E4M3 and E5M2 codes on FP8 tensor cores; with scale_granularity=row, rows then run along the contraction dimension of each GEMM", in_graph=True)
    seed: int = field(42, "seed", "seed of initial weights, batches and stochastic rounding", ge=0)
    rounding_seed: int | None = field(None, "numeric", "seed of the random numbers of rounding (stochastic, redrawn rotations) alone; None: seed", timed=False, moves_baseline=False, ge=0)
    # fmt: on

    if not TYPE_CHECKING:  # for a type checker the fields are the signature

        def __init__(self, /, **fields: Any) -> None:
            """Raises FieldError with one line for each wrong field."""
            try:
                super().__init__(**fields)
            except ValidationError as error:
                known = tuple(type(self).model_fields)
                problems = [problem(detail, known) for detail in error.errors()]
                raise FieldError((field, line + _whose(line, fields)) for field, line in problems) from None

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_published(cls, fields: Any) -> Any:
        return with_published(fields, Recipe.model_fields) if isinstance(fields, Mapping) else fields

    @field_validator("recipe")
    @classmethod
    def _is_published(cls, name: str | None) -> str | None:
        if name is not None:
            published(name)
        return name

    @field_validator("*", mode="before")
    @classmethod
    def _as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert a number of another type (1e3 steps, a NumPy scalar) to the field's; booleans and strings stay."""
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

    @field_validator("phases")
    @classmethod
    def _whole_steps(cls, phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return normal_phases(phases)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_gemms(self.gemms)
        for pattern, gemms in self.layer_gemms.items():
            check_gemms(gemms, f"layer_gemms.{pattern}")
        self.moment_casts()
        if not Recipe.model_fields.keys() <= self.model_fields_set:  # a config with all fields was written by a program
            check_shorthand(self, self.model_fields_set, recipe_defaults())
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
        """Raises ValueError if the GEMMs cannot be computed exactly in bfloat16 or on FP8 tensor cores as requested."""
        casts = list(self.casts_at().values())
        for pattern in (*self.layer_formats, *self.layer_gemms):
            casts += self.casts_at(pattern).values()
        if self.gemm_dtype == "bfloat16":
            for cast in casts:
                if obstacle := cast.bfloat16_obstacle():
                    raise ValueError(f"gemm_dtype='bfloat16': {obstacle}; use gemm_dtype='auto' or 'float32'")
        named = [self.format_at("", site) for site in GEMM_SITES]
        named += [find_format(name) for name in self.layer_formats.values()]
        if self.native_fp8 and (obstacle := self._native_obstacle(named)):
            raise ValueError(f"native_fp8=True: {obstacle}")
        return self

    @model_validator(mode="after")
    def _storable(self) -> Self:
        """Raises ValueError for stored weights whose own scale would move their grid, or lessen them, at every step."""
        for pattern in () if self.master_weights else ("", *self.layer_formats, *self.layer_gemms):
            cast = self.casts_at(pattern)[Operand("fprop", "weight")]
            if not cast.number_format.scaled or cast.scaling not in ("dynamic", "delayed"):
                continue
            if not cast.scales_are_powers_of_two:
                raise ValueError(
                    f"fprop.weight with scale_format={cast.scale_format!r} and master_weights=False: a real scale moves "
                    "the whole grid at every step; use powers of two (E8M0) or master_weights=true"
                )
            if cast.amax_factor < 1:
                raise ValueError(
                    f"fprop.weight with amax_factor={cast.amax_factor:g} and master_weights=False: the largest weights "
                    "are cut off anew at every step; use amax_factor=1 or master_weights=true"
                )
        return self

    @model_validator(mode="after")
    def _scheduled(self) -> Self:
        """Raises ValueError for a phase that is incomplete, contradicts itself, or changes no cast."""
        check_phases(self.phases)
        before = self.in_phase(0) if self.phases else None
        for number, phase in enumerate(self.phases, start=1):
            try:
                now = self.in_phase(number)
                check_effect(phase, now.gemms)
            except ValueError as error:
                raise ValueError(f"phases[{number - 1}]: {str(error).splitlines()[0]}") from None
            assert before is not None
            if now._same_casts(before):
                raise ValueError(
                    f"phases[{number - 1}]: leaves every cast as it was before; change one, or leave it out"
                )
            before = now
        return self

    def in_phase(self, number: int) -> Recipe:
        """The recipe in that phase of its schedule, without the schedule; 0: before the first phase starts."""
        fields = self.model_dump(include=set(Recipe.model_fields))
        for phase in self.phases[:number]:
            fields = fields_after(fields, phase)
        return Recipe(**(fields | {"phases": []}))

    def _same_casts(self, other: Recipe) -> bool:
        """Whether all layers have the same casts in both recipes, whatever their names and `layer_gemms` are."""
        layers = ("high_first_blocks", "high_last_blocks", "layer_formats", "layer_gemms")
        casts = [one.model_copy(update={"layer_gemms": {}}).casts_at() for one in (self, other)]
        return casts[0] == casts[1] and all(getattr(self, n) == getattr(other, n) for n in layers)

    def _native_obstacle(self, named: Sequence[NumberFormat]) -> str | None:
        """Why FP8 tensor cores cannot multiply the operands of this recipe, in one line; None if they can."""
        for fmt in named:
            if fmt.name not in NATIVE_FORMATS:
                return f"{fmt} at a site; FP8 tensor cores multiply {' and '.join(NATIVE_FORMATS)}"
        if self.scale_granularity not in ("tensor", "row"):
            return f"scale_granularity={self.scale_granularity!r} has no FP8 GEMM here; use 'tensor' or 'row'"
        if self.gemms or self.layer_gemms or self.high_first_blocks or self.high_last_blocks:
            return "gemms, layer_gemms and high_*_blocks round operands for one GEMM each; leave them out"
        if self.phases:
            return "phases change the casts of a run; leave them out"
        if self.scale_granularity == "row" and not self.master_weights:
            return "scale_granularity='row' rounds a weight anew for dx, off the grid it lives on; use 'tensor'"
        if self.attention_gemms:
            return "attention_gemms has no FP8 GEMM here; leave it out"
        if self.gemm_dtype != "auto":
            return f"the GEMMs multiply codes of 8 bits, not gemm_dtype={self.gemm_dtype!r}; leave that out"
        wide = [site for site in GEMM_SITES if self.format_at("", site).name == "E5M2"]
        if len(wide) > 1 or "E5M2" in self.layer_formats.values():
            return "no FP8 GEMM multiplies E5M2 by E5M2; use E5M2 at one site at most, such as gradient_format"
        return None

    def casts_at(self, layer: str = "", high_precision: bool = False) -> dict[Operand, Cast]:
        """The casts of a layer's six operands; `high_precision`: the layer stays in BF16 (see `high_last_blocks`)."""
        return casts_of(self, layer, high_precision)

    def moment_casts(self) -> dict[Moment, MomentCast]:
        """How the optimizer's moments are rounded; one that is kept in FP32 is absent."""
        given = {moment: getattr(self, moment) for moment in MOMENTS}
        return {moment: moment_cast(moment, fields) for moment, fields in given.items() if fields is not None}

    def format_at(self, layer: str, site: GemmSite) -> NumberFormat:
        """The format of a site of a layer, from the last matching `layer_formats` glob, else `<site>_format`, `format`.

        Raises ValueError for an unknown format, or if `overflow` is "inf" and the format has no infinity.
        """
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


def as_recipe(given: Recipe | str, whose: str) -> Recipe:
    """A recipe as it is; of a name the published recipe, or per-tensor scaling in the format of that name.

    Raises ValueError for an unknown name, TypeError, which begins with `whose`, for anything else.
    """
    if isinstance(given, Recipe):
        return given
    if not isinstance(given, str):
        raise TypeError(f"{whose}: expected a Recipe, or the name of a recipe or format, found {type(given).__name__}")
    if given in published_names():
        return Recipe(recipe=given)
    try:
        return Recipe(format=find_format(given).name)
    except ValueError:
        near = did_you_mean(given, published_names())
        if not near:
            raise
        raise ValueError(f"no recipe or format {given!r}{near}") from None


def recipe_defaults() -> dict[str, Any]:
    """Field name -> default, for all fields of a recipe."""
    return {name: field.get_default() for name, field in Recipe.model_fields.items()}


def _whose(line: str, given: Mapping[str, Any]) -> str:
    """The fields in an error line that come from the published recipe instead of the config, as an addition to it."""
    name = given.get("recipe")
    theirs = published_fields(name) if isinstance(name, str) else {}
    said = [field for field in theirs if field not in given and re.search(rf"\b{field}\b", line)]
    return f" ({', '.join(said)}: of recipe={name!r})" if said else ""
