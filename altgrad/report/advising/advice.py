"""The section "What to try" of a failure report: config changes that follow from the verdict and the measurements.

Each piece of advice names the exact change and the evidence for it.  A change is not advised if the config already has
it, if it or its recipe would refuse it, if it would leave the tensor in question as it is, or if no measurement
supports it.  The verdict decides only the order in which causes are examined: `never_learned`, for example, may come
from an underflow as well as from frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from altgrad.config.phases import CAST_FIELDS
from altgrad.config.recipe import GEMM_SITES
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.report.advising.causes import (
    Advice,
    frozen,
    never_moved,
    noisy_gradient,
    non_finite,
    overflow,
    rank,
    smaller_steps,
    underflow,
)
from altgrad.report.evidence import Evidence

Cause = Callable[[Evidence], Iterator[Advice]]
_ALL: tuple[Cause, ...] = (overflow, underflow, frozen, noisy_gradient, non_finite)
CAUSES_BY_RULE: Mapping[str, tuple[Cause, ...]] = {
    "non_finite": (overflow, non_finite, noisy_gradient, underflow),
    "diverged": (overflow, noisy_gradient, smaller_steps, underflow, frozen),
    "degraded": (overflow, noisy_gradient, smaller_steps, underflow, frozen),
    "stalled": (frozen, underflow, overflow, noisy_gradient),
    "never_learned": (underflow, frozen, overflow, noisy_gradient, never_moved),
    "no_context": (overflow, noisy_gradient, smaller_steps, underflow, frozen),
    "rank_collapse": (rank, overflow, underflow, noisy_gradient),
    "gap_to_baseline": (overflow, underflow, frozen, noisy_gradient, non_finite),
}


def advise(evidence: Evidence) -> list[Advice]:
    """Advice for a collapsed run, most promising first; empty if no measurement points to a cause."""
    found: list[Advice] = []
    for cause in CAUSES_BY_RULE.get(evidence.verdict.rule, _ALL):
        for advice in cause(evidence):
            taken = {field for other in found for field in other.changes}  # no second value for the same field
            if _is_new(evidence, advice) and not taken & advice.changes.keys():
                found.append(advice)
    return found


def measure_more(evidence: Evidence) -> list[Advice]:
    """Config changes that would have measured more of this collapse."""
    config, verdict = evidence.config, evidence.verdict
    found = []
    if not evidence.layers.num_rows and config.diagnostic_interval > verdict.step:
        every = max(1, verdict.step // 10)
        found.append(
            Advice(
                {"diagnostic_interval": every}, f"the run collapsed at step {verdict.step}, before the first diagnosis"
            )
        )
    if not config.use_shadow:
        found.append(Advice({"use_shadow": True}, "distinguishes a wrong gradient from a lost update"))
    if not config.log_ulp:
        found.append(Advice({"log_ulp": True}, "shows how far the weights move on their grid"))
    return [advice for advice in found if _is_new(evidence, advice)]


def _is_new(evidence: Evidence, advice: Advice) -> bool:
    """Whether the advice changes anything, and the run's recipe accepts the changed config."""
    config = evidence.config
    if all(getattr(config, name) == value for name, value in advice.changes.items()):
        return False
    try:
        changed = config.altered(**advice.changes)
    except ConfigError:
        return False
    if advice.changes.keys() & changed.without_effect():
        return False
    return not advice.changes.keys() <= set(CAST_FIELDS) or _changes_a_cast(evidence, advice, changed)


def _changes_a_cast(evidence: Evidence, advice: Advice, changed: TrainConfig) -> bool:
    """Whether the advice changes a cast that its tensor had at the verdict, and not only a format shifted to."""
    recipe = changed.in_phase(evidence.phase)
    if any(name == "format" or name.endswith("_format") for name in advice.changes):
        return any(recipe.format_at("", site).name != evidence.format_at(site).name for site in GEMM_SITES)
    site = "weight" if advice.site == "update" else advice.site  # the write-back rounds as the weight's cast
    before, after = (one.casts_at(advice.layer or "") for one in (evidence.recipe, recipe))
    return any(before[operand] != after[operand] for operand in before if site in (None, operand.site))
