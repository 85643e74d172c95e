"""Causes of a collapse: each function examines the measurements of one cause and yields changes that would remove it.

A cause yields nothing if it was not measured, or if its measurements are normal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad.config.recipe import GEMM_SITES
from altgrad.format_relations import FALLBACKS
from altgrad.formats import find_format
from altgrad.metrics import SITES, SiteName
from altgrad.report.advising.alternatives import more_exponent, more_mantissa
from altgrad.report.evidence import Evidence, Finding
from altgrad.report.thresholds import BOUNDS, CONCENTRATED, GROWTH, RISE, RISE_SHARE
from altgrad.text.foreign_text import as_code
from altgrad.text.number_text import number


@dataclass(frozen=True)
class Advice:
    """Config fields to set, and the measured reason.

    `site`, `layer`: the tensor that the change is for; None for the whole model.
    """

    changes: Mapping[str, Any]
    reason: str
    site: SiteName | None = None
    layer: str | None = None

    @property
    def what(self) -> str:
        """The fields to set, as code."""
        return ", ".join(as_code(f"{name}: {_yaml(value)}") for name, value in self.changes.items())

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


def frozen(evidence: Evidence) -> Iterator[Advice]:
    """Intended updates are lost: they do not change the stored weights."""
    config = evidence.config
    displacement = evidence.last("realised_displacement")
    if displacement is None and evidence.verdict.metric == "realised_displacement":
        displacement = _from_verdict(evidence)
    if displacement is None or not displacement.value < max(
        config.stalled_displacement, BOUNDS["realised_displacement"].limit
    ):
        return
    stall = evidence.worst("stall_rate", "weight") or evidence.last("stall_rate")
    seen = str(displacement) + (f"; {stall}" if stall is not None else "")
    if not config.master_weights:
        yield Advice(
            {"master_weights": True}, f"updates smaller than half an ULP do not change the stored weight ({seen})"
        )
        if config.update_rounding == "nearest":
            yield Advice(
                {"update_rounding": "stochastic"},
                f"rounds up or down by chance, so that stored weights follow the updates on average ({seen})",
            )
        else:
            reason = f"keeps what the rounding takes from an update, in BF16, for the next one ({seen})"
            yield Advice({"update_rounding": "kahan"}, reason)
    if config.scaling == "none":
        yield Advice({"scaling": "dynamic"}, f"fits the grid to the size of the weights ({seen})")
    fmt = evidence.format_at("weight")
    wider = more_mantissa(fmt)
    if wider is not None:
        gain = 2 ** (find_format(wider).mantissa_bits - fmt.mantissa_bits)
        reason = f"an ULP {gain} times smaller than {fmt}'s for weights within its range ({seen})"
        yield Advice({"weight_format": wider}, reason)
    fallback = FALLBACKS.get(fmt.name)
    if fallback is not None and find_format(fallback).mantissa_bits > fmt.mantissa_bits:  # finer, not wider
        reason = f"replaces {fmt} during the run by {fallback}, whose ULP is smaller ({seen})"
        yield Advice({"enable_emergency_shift": True}, reason)


def overflow(evidence: Evidence) -> Iterator[Advice]:
    """Values exceed the largest finite value of the scaled format."""
    config = evidence.config
    for finding in _by_site(evidence, "overflow_rate", BOUNDS["overflow_rate"].limit):
        if config.scaling == "none":
            yield _at(finding, {"scaling": "dynamic"}, "a scale fits the values to the format's range")
        if config.scaling == "delayed":
            said = f"the scale of the last {config.amax_history} steps is too small"
            yield _at(finding, {"scaling": "dynamic"}, said)
            yield _at(finding, {"amax_factor": 2 * config.amax_factor}, "leaves a binade of headroom")
        if config.amax_factor < 1:
            yield _at(finding, {"amax_factor": 1.0}, f"{config.amax_factor:g} lets the largest values overflow")
        yield from _safer_site(evidence, finding)
        yield Advice({"enable_partition_clipping": True}, f"clips the gradient norm while values overflow ({finding})")


def underflow(evidence: Evidence) -> Iterator[Advice]:
    """Non-zero values are rounded to zero."""
    config = evidence.config
    for finding in _by_site(evidence, "underflow_rate", BOUNDS["underflow_rate"].limit):
        if config.scaling == "none":
            yield _at(finding, {"scaling": "dynamic"}, "moves the values up into the format's range")
        elif config.scale_granularity == "tensor":
            finer = {"scale_granularity": "row"} | ({"scaling": "dynamic"} if config.scaling == "delayed" else {})
            yield _at(finding, finer, "one scale per tensor leaves small rows at zero")
        elif config.scale_granularity == "row":
            yield _at(finding, {"scale_granularity": "block"}, "one scale per row leaves small values at zero")
        if finding.site == "update":
            yield Advice({"master_weights": True}, f"written-back weights are rounded to zero ({finding})")
        yield from _safer_site(evidence, finding)


def non_finite(evidence: Evidence) -> Iterator[Advice]:
    """The loss or the gradients contain NaN or inf."""
    config = evidence.config
    gradients = evidence.worst("non_finite_gradients")
    if gradients is None or gradients.value == 0:
        if evidence.verdict.rule != "non_finite":
            return
        gradients = _from_verdict(evidence)
    seen = str(gradients)
    formats = [evidence.format_at(site) for site in GEMM_SITES]
    to_inf = [fmt.name for fmt in formats if fmt.overflow == "inf"]
    if to_inf:
        yield Advice({"overflow": "saturate"}, f"{to_inf[0]} turns values that are too large into infinity ({seen})")
    if any(fmt.name in FALLBACKS for fmt in formats):
        patience = config.emergency_shift_nan_patience
        yield Advice({"enable_emergency_shift": True}, f"a safer format after {patience} such steps in a row ({seen})")
    yield from smaller_steps(evidence)


def smaller_steps(evidence: Evidence) -> Iterator[Advice]:
    """The loss or the gradient norm grew; the advice is smaller steps."""
    config = evidence.config
    loss, norm = evidence.curve("loss").finite(), evidence.curve("gradient_norm").finite()
    grown = []
    if len(loss.values) and loss.values[-1] > loss.values.min() + _rise(evidence, loss.values):
        at = int(loss.values.argmin())
        grown.append(
            f"training loss {number(loss.values[at])} at step {loss.steps[at]}, "
            f"{number(loss.values[-1])} at step {loss.steps[-1]}"
        )
    if len(norm.values) and norm.values.max() > GROWTH * np.median(norm.values):
        at = int(norm.values.argmax())
        grown.append(
            f"gradient norm {number(norm.values[at])} at step {norm.steps[at]}, median {number(np.median(norm.values))}"
        )
    if not grown:
        return
    seen = "; ".join(grown)
    if config.gradient_clip == 0:
        yield Advice({"gradient_clip": 1.0}, f"the gradient norm has no limit ({seen})")
    yield Advice({"learning_rate": _round(config.learning_rate / 3)}, f"a third of {config.learning_rate:g} ({seen})")


def _rise(evidence: Evidence, losses: NDArray[np.float64]) -> float:
    """The amount above its best from which on a loss counts as grown, in units of the loss."""
    return RISE if evidence.run.loss_unit == "nats" else RISE_SHARE * float(losses[0] - losses.min())


def noisy_gradient(evidence: Evidence) -> Iterator[Advice]:
    """The direction of the rounded gradient differs from that of the unrounded one."""
    cosine = evidence.last("gradient_cosine_similarity")
    if cosine is None or not cosine.value < BOUNDS["gradient_cosine_similarity"].limit:
        return
    worst = evidence.worst("gradient_cosine_similarity", "weight", lowest=True)
    seen = str(cosine) + (f"; lowest: {worst}" if worst is not None else "")
    fmt = evidence.format_at("gradient")
    wider = more_mantissa(fmt)
    if wider is not None:
        yield Advice({"gradient_format": wider}, f"rounding changes the direction of the gradient ({seen})")
    if evidence.config.rounding == "nearest":
        yield Advice({"rounding": "stochastic"}, f"makes the rounding errors of the GEMM operands average out ({seen})")


def rank(evidence: Evidence) -> Iterator[Advice]:
    """The stable rank of a layer's weight matrix has collapsed."""
    if evidence.verdict.rule != "rank_collapse":
        return
    lowest = evidence.worst("stable_rank", "weight", lowest=True)
    if lowest is not None and lowest.layer is not None:
        yield _exempt(evidence, lowest)
    yield from smaller_steps(evidence)
    if evidence.config.weight_decay > 0 and lowest is not None:
        smaller = _round(evidence.config.weight_decay / 10)
        yield Advice({"weight_decay": smaller}, f"decay shrinks directions that no gradient restores ({lowest})")


def never_moved(evidence: Evidence) -> Iterator[Advice]:
    """The loss stayed at its start although updates reach the weights; the advice is larger steps."""
    loss, displacement = evidence.curve("loss").finite(), evidence.last("realised_displacement")
    if evidence.verdict.rule != "never_learned" or not len(loss.values):
        return
    if displacement is not None and not displacement.value >= BOUNDS["realised_displacement"].limit:
        return
    seen = f"training loss {number(loss.values[0])} at step {loss.steps[0]}, best {number(loss.values.min())}"
    arrives = "" if displacement is None else f"; {displacement}"
    larger = _round(3 * evidence.config.learning_rate)
    yield Advice({"learning_rate": larger}, f"three times {evidence.config.learning_rate:g} ({seen}{arrives})")


def _from_verdict(evidence: Evidence) -> Finding:
    verdict = evidence.verdict
    return Finding(verdict.metric, verdict.value, verdict.step)


def _by_site(evidence: Evidence, metric: str, limit: float) -> list[Finding]:
    """The worst layer of each site at or above the limit, worst site first; the model if no layer was measured."""
    found = [evidence.worst(metric, site) for site in SITES]
    if not any(found):
        found = [evidence.worst(metric)]
    return sorted((f for f in found if f is not None and f.value >= limit), key=lambda f: -f.value)


def _safer_site(evidence: Evidence, finding: Finding) -> Iterator[Advice]:
    """Advice to exempt the finding's layer if it alone is bad, and to use more exponent bits at its site."""
    site = finding.site or "weight"
    fmt = evidence.format_at(site, finding.layer)
    wider = more_exponent(fmt)
    if finding.layer is not None and fmt.bits <= 8 and _is_alone(evidence, finding, site):
        yield _exempt(evidence, finding)
    if wider is None:
        return
    reason = f"more range than {fmt} ({finding})"
    if finding.layer is not None and fmt != evidence.format_at(site):
        formats = {**evidence.config.layer_formats, finding.layer: wider}
        yield Advice({"layer_formats": formats}, reason, finding.site, finding.layer)
    else:
        yield Advice({"format" if finding.site is None else _format_field(site): wider}, reason, finding.site)


def _format_field(site: SiteName) -> str:
    """The config field that sets a site's format."""
    return "weight_format" if site == "update" else f"{site}_format"


def _is_alone(evidence: Evidence, finding: Finding, site: SiteName) -> bool:
    peaks = [
        float(c.values.max())
        for c in (c.finite() for c in evidence.layer_curves(finding.metric, site).values())
        if len(c.values)
    ]
    return len(peaks) >= 3 and finding.value > CONCENTRATED * float(np.median(peaks))


def _exempt(evidence: Evidence, finding: Finding) -> Advice:
    formats = {**evidence.config.layer_formats, str(finding.layer): "BF16"}
    return _at(finding, {"layer_formats": formats}, "this layer stands out, the others can keep their format")


def _at(finding: Finding, changes: Mapping[str, Any], reason: str) -> Advice:
    """Advice for the tensor of a finding, which ends the reason in parentheses."""
    return Advice(changes, f"{reason} ({finding})", finding.site, finding.layer)


def _round(value: float) -> float:
    return float(f"{value:.1g}")


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
