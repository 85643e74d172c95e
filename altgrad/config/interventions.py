"""The interventions that a sweep may try on a failing format, by name, and the config fields that each sets.

Names are joined with `+`: `clip+shift`.  The rungs of joined names are those of one ladder, in that order:
`rollback+to-E5M2`.  `to-FORMAT` shifts all scaled operands to any format, `to-FORMAT-OPERAND` (`to-BF16-wgrad`,
`to-E5M2-dgrad.gradient`) those of one GEMM or tensor, or a single one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altgrad.config.train_config import ConfigError
from altgrad.formats import find_format
from altgrad.text.error_hints import did_you_mean, shown


def _ladder_of(rung: str, **fields: Any) -> dict[str, Any]:
    return {"enable_rescue_ladder": True, "rescue_rungs": [rung], **fields}


INTERVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "clip": {"enable_partition_clipping": True},
    "shift": {"enable_emergency_shift": True},
    "skip": _ladder_of("skip"),
    "rate": _ladder_of("rate"),
    "rollback": _ladder_of("rollback"),
    "bf16": _ladder_of("shift"),
    "ladder": {"enable_rescue_ladder": True},
    "stochastic": {"update_rounding": "stochastic"},
    "kahan": {"update_rounding": "kahan"},
    "eco": {"update_rounding": "eco_stochastic"},
    "master": {"master_weights": True},
    "scaling": {"scaling": "dynamic"},
}
PATTERNS = ("to-FORMAT", "to-FORMAT-OPERAND")  # names beside these


def intervention_fields(name: str) -> dict[str, Any]:
    """The config fields that an intervention such as `clip+shift` sets.  Raises ConfigError for an unknown name."""
    fields: dict[str, Any] = {}
    for part in name.split("+"):
        try:
            found = _part(part)
        except ValueError as error:
            raise ConfigError(f"intervention={shown(part)}: {error}") from None
        if found is None:
            known = f"{', '.join((*INTERVENTIONS, *PATTERNS))}, or several joined with +"
            raise ConfigError(f"intervention={shown(part)}; known: {known}{did_you_mean(part, INTERVENTIONS)}")
        rungs = [*fields.get("rescue_rungs", []), *found.get("rescue_rungs", [])]
        fields |= found
        if rungs:
            fields["rescue_rungs"] = list(dict.fromkeys(rungs))
    return fields


def implied_fields(name: str) -> dict[str, Any]:
    """As `intervention_fields`, without the parts of the name that this version does not know."""
    return intervention_fields("+".join(part for part in name.split("+") if _known(part)) or "none")


def _known(part: str) -> bool:
    try:
        return _part(part) is not None
    except ValueError:
        return False


def _part(name: str) -> Mapping[str, Any] | None:
    """The fields of one name; None if it is unknown.  Raises ValueError for an unknown format after `to-`."""
    if not name.startswith("to-"):
        return INTERVENTIONS.get(name)
    fmt, _, operand = name.removeprefix("to-").partition("-")
    chosen = {"rescue_shift_operands": [operand]} if operand else {}
    return _ladder_of("shift", rescue_shift_format=find_format(fmt).name, **chosen)
