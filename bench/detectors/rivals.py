"""Rules of others on a recorded run, in their published form.

Each rival scores every step from the steps up to it, and stops the run at the first step whose score is above its limit.
The published limit is one row of the table; a second row has the limit that finds most collapses of the tune split
with at most 2 % false stops there, so that no rule is shown below what it can do.  Some of these rules were published
to clip, to skip or to warn; here the first step on which they act stops the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bench.detectors.recording import Recording

Scores = dict[int, float]  # by step; a step without one cannot stop the run


@dataclass(frozen=True)
class Rival:
    """One rule.  limit: the published one; None if the publication names none.

    limits: those that are tried on the tune split; none for a rule without a number.  scores: see `rivals`; a rule
    whose state depends on its limit gets that.
    """

    name: str
    source: str
    limit: float | None
    scores: Callable[[Recording, float], Scores]
    limits: Sequence[float] = ()

    def stop(self, run: Recording, limit: float) -> int | None:
        """The step at which the rule stops the run; None if it does not."""
        return first_above(self.scores(run, limit), limit)


def first_above(scores: Scores, limit: float) -> int | None:
    """The first step whose score is above the limit."""
    return next((step for step, score in scores.items() if score > limit), None)


def _column(run: Recording, name: str) -> dict[int, Any]:
    return {row["step"]: row[name] for row in run.rows if row.get(name) is not None}


def not_finite(run: Recording, limit: float) -> Scores:
    """1 where the loss is NaN or infinite."""
    return {step: float(not math.isfinite(loss)) for step, loss in run.losses.items()}


def over_average(run: Recording, limit: float, keep: float = 0.99) -> Scores:
    """Loss divided by its exponential moving average, from the tenth step on."""
    scores, average = {}, None
    for step, loss in run.losses.items():
        if not math.isfinite(loss):
            continue
        if average is not None and step > 10:
            scores[step] = loss / average
        average = loss if average is None else keep * average + (1 - keep) * loss
    return scores


def over_first_losses(run: Recording, limit: float, samples: int = 100) -> Scores:
    """Loss divided by the largest of the first 100 losses; those themselves and losses that are not finite are left out."""
    finite = [(step, abs(loss)) for step, loss in run.losses.items() if math.isfinite(loss)]
    largest = max((loss for _, loss in finite[:samples]), default=math.inf)
    return {step: loss / largest for step, loss in finite[samples:]}


def persistent_spike(run: Recording, limit: float, window: int = 100, patience: int = 5, cap: float = 10) -> Scores:
    """The smallest ratio of the last five losses to the mean of the 100 before each; inf for a loss mostly above 10."""
    scores, losses = {}, list(run.losses.items())
    ratios: list[float] = []
    for place in range(window, len(losses)):
        step, loss = losses[place]
        before = [value for _, value in losses[place - window : place]]
        ratios.append(loss / fmean(before))
        high = step >= 2 * window and sum(value > cap for value in before) >= window / 2
        recent = ratios[-patience:]
        scores[step] = math.inf if high else min(recent) if len(recent) == patience else -math.inf
    return scores


def gradient_z(run: Recording, limit: float, alpha: float = 0.97, warmup: int = 25) -> Scores:
    """z of the gradient norm by running mean and variance, into which an outlier enters as what it is clipped to."""
    scores: Scores = {}
    finite = [(step, norm) for step, norm in _column(run, "gradient_norm").items() if math.isfinite(norm)]
    first = [norm for _, norm in finite[:warmup]]
    if len(first) < warmup:
        return {}
    mean = fmean(first)
    variance = fmean((norm - mean) ** 2 for norm in first)
    for step, norm in finite[warmup:]:
        deviation = math.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        scores[step] = z
        if z > limit:
            norm = mean + limit * deviation / (z / limit)
        mean = alpha * mean + (1 - alpha) * norm
        variance = alpha * variance + (1 - alpha) * (norm - mean) ** 2
    return scores


def update_rms(run: Recording, limit: float) -> Scores:
    """RMS of gradient over second moment of the first matrix (here the token embedding)."""
    return {step: found[0] for step, found in _column(run, "update_rms").items()}


def over_mean_gradient(run: Recording, limit: float, start: int = 25) -> Scores:
    """The largest ratio, over all parameters, of a gradient's norm to the mean of its norms at all earlier steps."""
    scores: Scores = {}
    totals: list[float] = []
    for number, (step, norms) in enumerate(_column(run, "gradient_norms").items()):
        if number >= start:
            scores[step] = max(
                number * norm / total if total else 0.0 for norm, total in zip(norms, totals, strict=True)
            )
        totals = norms if not totals else [total + norm for total, norm in zip(totals, norms, strict=True)]
    return scores


def sign_diversity(run: Recording, limit: float) -> Scores:
    """Minus the share of inputs on the rarer side of a layer's first right singular vector, where it is smallest."""
    return {step: -min(shares) for step, shares in _column(run, "sign_diversity").items() if shares}


def largest_singular(run: Recording, limit: float) -> Scores:
    """Growth of the largest singular value of any layer since the first measurement."""
    found = list(_column(run, "largest_singular").items())
    first = found[0][1]
    return {step: max(a / b for a, b in zip(values, first, strict=True)) for step, values in found[1:]}


def held_out_rise(run: Recording, limit: float) -> Scores:
    """Held-out loss above its lowest so far, in per cent of that."""
    scores, best = {}, math.inf
    for step, loss in run.held_out.items():
        best = min(best, loss)
        scores[step] = 100 * (loss / best - 1)
    return scores


def no_better(run: Recording, limit: float) -> Scores:
    """Number of held-out losses since the lowest one."""
    scores, best, waited = {}, math.inf, 0
    for step, loss in run.held_out.items():
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        scores[step] = waited
    return scores


def _powers(low: float, high: float, count: int = 60) -> list[float]:
    return [low * (high / low) ** (place / (count - 1)) for place in range(count)]


RIVALS: Sequence[Rival] = (
    Rival("loss not finite", "Megatron-LM, check_for_nan_in_loss; Lightning, EarlyStopping(check_finite)", 0.5, not_finite),
    Rival("loss > 3 x its moving average", "a rule of thumb; no publication found", 3.0, over_average, _powers(1.02, 20)),
    Rival("loss >= 10 x the largest of the first 100", "Megatron-LM, rerun_state_machine.is_unexpectedly_large with SPIKY_LOSS_FACTOR = 10", 10.0, over_first_losses, _powers(0.3, 20)),
    Rival("loss > 2 x the mean of 100, 5 times", "llm-foundry, callbacks/kill_loss_spike_callback.py", 2.0, persistent_spike, _powers(0.9, 10)),
    Rival("z of the gradient norm > 2.5", "ZClip (2025), arXiv:2504.02507; bluorion-com/ZClip", 2.5, gradient_z, _powers(1, 300)),
    Rival("update RMS of the embedding >= 2.3", "Wortsman et al. (2023), arXiv:2304.13013, section 3", 2.3, update_rms, _powers(1.2, 30)),
    Rival("gradient norm over its mean (GNMR)", "Kong et al. (2026), arXiv:2606.00539; its abstract names no limit", None, over_mean_gradient, _powers(1.2, 300)),
    Rival("sign diversity of spectral alignment", "Qiu et al. (2025), arXiv:2510.04202; its abstract names no limit", None, sign_diversity, [-share / 200 for share in range(101)]),
    Rival("growth of the largest singular value", "Zhai et al. (2023), arXiv:2303.06296, which bounds it; no limit", None, largest_singular, _powers(1.05, 100)),
    Rival("held-out loss 5 % above its lowest", "GL_5 of Prechelt (1998), Early stopping - but when?", 5.0, held_out_rise, _powers(0.1, 200)),
    Rival("no lower held-out loss 3 times", "Lightning, EarlyStopping(patience=3)", 2.5, no_better, [0.5 + count for count in range(14)]),
)  # fmt: skip
