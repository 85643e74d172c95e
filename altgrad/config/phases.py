"""The schedule of a recipe: from a step, or a share of the run, on its GEMMs have other casts.

    recipe: nvfp4
    phases:
      - {from_share: 0.82, gemms: {fprop: {format: BF16}}}   # the last 18 % of the steps: forward pass in BF16

A phase keeps the fields of the one before it except those that it names.  Of `layer_formats` and `layer_gemms` it
replaces single globs, of `gemms` whole GEMMs: `{wgrad: {format: BF16}}` leaves of wgrad only the flat fields, and so
also ends a rotation and stochastic rounding.  Steps are counted from 1: `from_step: 300` means steps 300, 301, ... and
`from_share: 0.9` the last 50 of 500 steps.

No torch: see `train_config`.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from altgrad.config.operands import FLAT_FIELDS, no_effect_of
from altgrad.text.error_hints import did_you_mean, shown

PhaseFields = Mapping[str, Any]  # a phase as in a config: when it starts, and the fields that it changes
_STARTS = ("from_step", "from_share")
CAST_FIELDS = (*FLAT_FIELDS, "gemms", "layer_gemms", "layer_formats", "high_first_blocks", "high_last_blocks")


def check_phases(phases: Sequence[PhaseFields]) -> None:
    """Raises ValueError for a phase with an unknown field, without a valid start, or not after the one before it."""
    for number, phase in enumerate(phases):
        where = f"phases[{number}]"
        for name in phase:
            if name not in (*_STARTS, *CAST_FIELDS):
                known = (*_STARTS, *CAST_FIELDS)
                raise ValueError(
                    f"{where}.{name}: no field of a phase; known: {', '.join(known)}{did_you_mean(name, known)}"
                )
        for name in ("gemms", "layer_gemms", "layer_formats"):
            if not isinstance(phase.get(name, {}), Mapping):
                raise ValueError(f"{where}.{name}={shown(phase[name])}: expected fields by name")
        if len(phase.keys() & set(_STARTS)) != 1:
            raise ValueError(
                f"{where}: give one start: from_step (its first step) or from_share (of the run before it)"
            )
        step, share = phase.get("from_step"), phase.get("from_share")
        if share is None and (isinstance(step, bool) or not isinstance(step, int) or step < 1):
            raise ValueError(f"{where}.from_step={shown(step)}: expected a step number, counted from 1")
        if step is None and (not isinstance(share, float) or not 0 < share < 1):
            raise ValueError(f"{where}.from_share={shown(share)}: expected a share of the run, above 0 and below 1")
        if not changes_of(phase):
            raise ValueError(f"{where}: changes no cast; name what it changes, such as gemms or format")
        for name in _STARTS:
            earlier = [(at, other[name]) for at, other in enumerate(phases[:number]) if name in other]
            if name in phase and earlier and phase[name] <= earlier[-1][1]:
                at, before = earlier[-1]
                raise ValueError(
                    f"{where}.{name}={phase[name]:g}: not after phases[{at}].{name}={before:g}; order phases by "
                    "their start"
                )


def normal_phases(phases: Sequence[PhaseFields]) -> list[dict[str, Any]]:
    """The phases with whole numbers for steps: `from_step: 1e3` becomes 1000."""
    return [{**phase, **_whole_step(phase.get("from_step"))} for phase in phases]


def _whole_step(step: Any) -> dict[str, int]:
    return {"from_step": int(step)} if isinstance(step, float) and step.is_integer() else {}


def changes_of(phase: PhaseFields) -> dict[str, Any]:
    """The fields that a phase changes, without its start."""
    return {name: value for name, value in phase.items() if name not in _STARTS}


def fields_after(fields: Mapping[str, Any], phase: PhaseFields) -> dict[str, Any]:
    """The fields of a recipe after a phase has changed them (see the module)."""
    merged = {**fields, **changes_of(phase)}
    if "gemms" in phase:
        merged["gemms"] = {**fields["gemms"], **phase["gemms"]}
    for globs in {"layer_formats", "layer_gemms"} & phase.keys():  # the last glob that matches counts: the phase's
        kept = {glob: value for glob, value in fields[globs].items() if glob not in phase[globs]}
        merged[globs] = {**kept, **phase[globs]}
    return merged


def check_effect(phase: PhaseFields, gemms: Mapping[str, Any]) -> None:
    """Raises ValueError for a flat field of a phase that `gemms`, as they are in that phase, set for every operand."""
    for name, fields in no_effect_of(gemms).items():
        if name in phase:
            raise ValueError(
                f"{name}={shown(phase[name])} changes nothing: gemms sets {fields} of every operand; change it there"
            )


def first_steps(phases: Sequence[PhaseFields], total_steps: int | None) -> tuple[int, ...]:
    """The first step of each phase, in ascending order; `total_steps`: the length of the run, None if it is open.

    Example: from_share 0.9 of 500 steps gives 451.  Raises ValueError for a share of an open run, and for a phase that
    would never start or leave no step to the one before it.
    """
    found: list[int] = []
    for number, phase in enumerate(phases):
        where, text = f"phases[{number}]", _start(phase)
        if "from_step" in phase:
            first = phase["from_step"]
        elif total_steps is None:
            raise ValueError(
                f"{where}.{text}: a share of an unknown number of steps; give total_steps, or use from_step"
            )
        else:
            first = int(Fraction(str(phase["from_share"])) * total_steps) + 1  # exact: 0.29 of 100 steps are 29
        if total_steps is not None and first > total_steps:
            raise ValueError(f"{where}.{text} never starts: the run has {total_steps} steps")
        if found and first <= found[-1]:
            raise ValueError(
                f"{where}.{text} starts at step {first}, phases[{number - 1}] at step {found[-1]}; order phases by "
                "their start, and leave each a step"
            )
        found.append(first)
    return tuple(found)


def phase_at(first: Sequence[int], step: int) -> int:
    """The number of the phase that a step belongs to: 0 before the first of `first_steps`, then 1, 2, ..."""
    return bisect.bisect_right(first, step)


def phase_detail(phases: Sequence[PhaseFields], number: int) -> dict[str, Any]:
    """The particulars of the event at the start of a phase: its number, when it starts, and what it changes."""
    if number == 0:  # a caller went back to an earlier step
        return {"phase": 0}
    phase = phases[number - 1]
    return {"phase": number, "start": start_text(phase), **changes_of(phase)}


def phases_text(phases: Sequence[PhaseFields]) -> str:
    """A schedule in a line: `from 82% of the run gemms {"fprop": {"format": "BF16"}}`."""
    return "; ".join(
        f"{start_text(phase)} " + ", ".join(f"{name} {_value_text(value)}" for name, value in changes_of(phase).items())
        for phase in phases
    )


def start_text(phase: PhaseFields) -> str:
    """When a phase starts, in words: `from step 300`, `from 82% of the run`."""
    if "from_step" in phase:
        return f"from step {phase['from_step']}"
    return f"from {float(100 * Fraction(str(phase['from_share']))):g}% of the run"


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _start(phase: PhaseFields) -> str:
    return next(f"{name}={phase[name]:g}" for name in _STARTS if name in phase)
