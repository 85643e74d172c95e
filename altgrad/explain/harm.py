"""How much of a collapse's harm an arm leaves: a verdict that fails to come by a hair proves nothing.

The harm is what the loss of the unchanged replay lies above that of the replay with all operands healed, at the step of
the verdict.  An arm that no rule judges has prevented the collapse only if it leaves at most a quarter of that.  On
other batches the same holds against the replay with all operands healed on these batches: if it is better than the
unchanged one by more than a quarter of the harm, the harm has come back there, whether a rule judges it or not.

Example: the unchanged replay is at 0.171, all healed at 0.029.  An arm without a verdict at 0.154 leaves
0.125 / 0.142 = 88 % of the harm and prevents nothing; one at 0.033 leaves 2 %.

Two runs that differ in one rounding differ a little in their losses anyway; so the harm is measured only where it is at
least a twentieth of the unchanged loss.  Where it is smaller, or the loss is NaN, the verdict alone counts.
"""

from __future__ import annotations

import dataclasses
import math

from altgrad.explain.arm import ALL, CONTROL, Arm, ArmResult, Results, by_name, name_on

MOST_LEFT = 0.25  # share of the harm that an arm may leave which prevents the collapse
_LEAST = 0.05  # share of the unchanged loss that is harm


def harm_left(results: Results) -> dict[Arm, float]:
    """Arm without a verdict -> the share of the harm that it leaves; arms for which it is not measured are missing."""
    known = by_name(results)
    control, healed = known.get(CONTROL), known.get(ALL)
    if control is None or healed is None or not healed.prevented:
        return {}
    harm = _above(control, healed)
    if harm is None or control.loss is None or harm <= _LEAST * abs(control.loss):
        return {}
    found = {}
    for arm, result in results.items():
        reference = known.get(name_on(ALL, arm.replay))
        if result.prevented and reference is not None and reference.prevented:
            above = _above(result, reference)
            if above is not None:
                found[arm] = above / harm
    return found


def judged(results: Results) -> Results:
    """The results, in which an arm that leaves more than a quarter of the harm has not prevented the collapse."""
    left = harm_left(results)
    return {
        arm: dataclasses.replace(result, prevented=False) if left.get(arm, 0.0) > MOST_LEFT else result
        for arm, result in results.items()
    }


def _above(result: ArmResult, reference: ArmResult) -> float | None:
    """How far one loss lies above another one of the same step; None if one is not measured or not finite."""
    if result.loss is None or reference.loss is None or result.loss_step != reference.loss_step:
        return None
    above = result.loss - reference.loss
    return above if math.isfinite(above) else None
