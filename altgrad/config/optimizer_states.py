"""How the optimizer's moments are stored: a cast of the flattened tensor, and an optional expansion of its range.

    first_moment: {format: E4M3, block: 1x128, scale_rule: real, scale_format: FP32, range_expansion: true}

No torch: see `train_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from altgrad.config.cast import Cast
from altgrad.text.error_hints import did_you_mean, shown

Moment = Literal["first_moment", "second_moment"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
_OF_CAST = ("format", "block", "rounding", "scaling", "scale_rule", "scale_format", "scale_fp16")
_FIELDS = (*_OF_CAST, "range_expansion")


@dataclass(frozen=True)
class MomentCast:
    """How one moment is rounded after every optimizer step.

    `range_expansion`: the values that share a scale are raised to a power before they are rounded, so that they use the
    whole range of the format, and to the inverse power afterwards (see `stored.expansion`).
    """

    cast: Cast
    range_expansion: bool

    def __str__(self) -> str:
        return f"{self.cast}, range expanded" if self.range_expansion else str(self.cast)


def moment_cast(moment: Moment, fields: Mapping[str, Any]) -> MomentCast:
    """The cast described by the fields of `first_moment` or `second_moment`.  Raises ValueError for invalid fields."""
    for name in fields:
        if name not in _FIELDS:
            raise ValueError(f"{moment}.{name}: known fields: {', '.join(_FIELDS)}{did_you_mean(name, _FIELDS)}")
    if "format" not in fields:
        raise ValueError(f"{moment}: names no format; such as {moment}={{format: E4M3, block: 1x128}}")
    expansion = fields.get("range_expansion", False)
    if not isinstance(expansion, bool):
        raise ValueError(f"{moment}.range_expansion={shown(expansion)}: expected true or false")
    try:
        cast = Cast(**{name: value for name, value in fields.items() if name in _OF_CAST})
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join((moment, *(str(part) for part in detail["loc"])))
        raise ValueError(f"{place}: {detail['msg'].removeprefix('Value error, ')}") from None
    if cast.block != "tensor" and (cast.tile is None or cast.tile[0] != 1):
        raise ValueError(
            f"{moment}.block={cast.block!r}: a moment of any shape is cut as one row; tensor, or 1xB such as 1x128"
        )
    for field, value, accepted in (
        ("rounding", cast.rounding, ("nearest", "stochastic")),
        ("scaling", cast.scaling, ("none", "dynamic")),
    ):
        if value not in accepted:
            raise ValueError(f"{moment}.{field}={value!r}: expected {' or '.join(accepted)}")
    if expansion and not (cast.number_format.scaled and cast.scaling == "dynamic"):
        raise ValueError(
            f"{moment}.range_expansion=True with {cast}: it fits a group to the range of a format by its scale; use a "
            "format of at most 8 bits and scaling='dynamic'"
        )
    return MomentCast(cast, expansion)
