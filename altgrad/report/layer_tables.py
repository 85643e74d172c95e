"""The report's tables by layer and site: rates of lost values, sparse gradients, and weights that do not change."""

from __future__ import annotations

import numpy as np

from altgrad.metrics import METRICS, SITES
from altgrad.report.evidence import Evidence
from altgrad.results.reading.curves import Curve
from altgrad.text.foreign_text import as_code
from altgrad.text.number_text import ABSENT, number, table

_SHOWN = 5  # layers per site
_SHOWN_REGIONS = 10
_DIGITS = 3
_FROZEN = 0.99  # a layer is frozen if at least this share of its stored weights does not change in a step


def rates_by_layer(evidence: Evidence, metric: str) -> str:
    """Markdown table of the worst layers per site for a rate; a sentence if it was not measured or always 0."""
    rows: list[list[str]] = []
    zero: list[str] = []
    for site in SITES:
        curves = evidence.layer_curves(metric, site)
        worst = sorted(((*_peak(curve), name, curve) for name, curve in curves.items()), key=_by_severity)
        affected = [entry for entry in worst if entry[0] != 0]
        if curves and not affected:
            zero.append(f"{site} ({len(curves)} layers)")
        for value, step, name, curve in affected[:_SHOWN]:
            rows.append([site, as_code(name), _rate(value), str(step), _mean(curve), _final(curve)])
        if len(affected) > _SHOWN:
            rest = len(affected) - _SHOWN
            rows.append([site, f"{rest} more layer{'s' if rest > 1 else ''} above 0", *4 * [""]])
    if not rows and not zero:
        return f"By layer: {evidence.absence(metric)}."
    parts = []
    if rows:
        parts.append(table(["Site", "Layer", "Worst", "at step", "Mean", "Last"], rows, "llrrrr"))
    if zero:
        parts.append(f"0 at every measurement: {', '.join(zero)}.")
    return "\n\n".join(parts)


def gradient_sparsity(evidence: Evidence) -> str:
    """Markdown table of the share of exactly-zero weight gradients by layer."""
    return _weight_table(evidence, "gradient_sparsity")


def zero_update_regions(evidence: Evidence) -> str:
    """Markdown table of the share of unchanged weights by layer, with the step since which the layer is frozen."""
    curves = evidence.layer_curves("zero_update_fraction", "weight")
    if not curves:
        return f"By layer: {evidence.absence('zero_update_fraction')}."
    ranked = sorted(curves.items(), key=lambda item: (-float(item[1].values[-1]), _frozen_since(item[1]) or np.inf))
    frozen = [name for name, curve in ranked if _frozen_since(curve) is not None]
    head = ["Layer", "Last", "Mean", "Frozen since step"]
    rows = [
        [as_code(name), _final(curve), _mean(curve), _or_absent(_frozen_since(curve))]
        for name, curve in ranked[:_SHOWN_REGIONS]
    ]
    if len(ranked) > _SHOWN_REGIONS:
        rows.append([f"{len(ranked) - _SHOWN_REGIONS} more layers", "", "", ""])
    sentence = (
        f"Frozen at the last measurement (at least {number(100 * _FROZEN)} % of the weights kept their stored value "
        f"in a step): {len(frozen)} of {len(curves)} layers."
    )
    return f"{sentence}\n\n{table(head, rows)}"


def _weight_table(evidence: Evidence, metric: str) -> str:
    curves = evidence.layer_curves(metric, "weight")
    if not curves:
        overall = evidence.last(metric)
        return f"By layer: {evidence.absence(metric)}." if overall is None else f"Whole model: {overall}."
    ranked = sorted(((*_peak(curve), name, curve) for name, curve in curves.items()), key=_by_severity)
    worst = [entry for entry in ranked if entry[0] != 0]
    rows = [
        [as_code(name), _rate(value), str(step), _mean(curve), _final(curve)]
        for value, step, name, curve in worst[:_SHOWN_REGIONS]
    ]
    if len(worst) > _SHOWN_REGIONS:
        rows.append([f"{len(worst) - _SHOWN_REGIONS} more layers above 0", *4 * [""]])
    parts = [f"{METRICS[metric].label}: {METRICS[metric].meaning}."]
    if rows:
        parts.append(table(["Layer", "Worst", "at step", "Mean", "Last"], rows))
    if len(worst) < len(ranked):
        parts.append(f"0 at every measurement: {len(ranked) - len(worst)} layers.")
    return "\n\n".join(parts)


def _peak(curve: Curve) -> tuple[float, int]:
    """The largest value and its first step; a non-finite value counts as the largest."""
    at = int(np.argmax(np.where(np.isfinite(curve.values), curve.values, np.inf)))
    return float(curve.values[at]), int(curve.steps[at])


def _by_severity(entry: tuple[float, int, str, Curve]) -> tuple[float, float, str]:
    value, _, name, curve = entry
    return -value if np.isfinite(value) else -np.inf, -float(np.mean(curve.values)), name


def _rate(value: float) -> str:
    return number(value, _DIGITS)


def _mean(curve: Curve) -> str:
    return _rate(float(np.mean(curve.values)))


def _final(curve: Curve) -> str:
    return _rate(float(curve.values[-1]))


def _frozen_since(curve: Curve) -> int | None:
    """First step of the series of frozen measurements that lasts until the end; None if the last one is not frozen."""
    moving = np.flatnonzero(~(curve.values >= _FROZEN))
    start = int(moving[-1]) + 1 if len(moving) else 0
    return int(curve.steps[start]) if start < len(curve.steps) else None


def _or_absent(step: int | None) -> str:
    return ABSENT if step is None else str(step)
