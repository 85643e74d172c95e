"""What the technical words on the screens mean: metrics, events, collapse rules, and the other words of the field.

Metrics and events have their meaning in their own tables; the rest is here.
"""

from __future__ import annotations

from collections.abc import Mapping

from altgrad.events import EVENTS
from altgrad.metrics import METRICS

RULES: Mapping[str, str] = {
    "non_finite": "The loss or the gradients were NaN or infinite for too many steps in a row.",
    "diverged": "The smoothed loss rose above its best and did not come back.",
    "degraded": "The held-out loss rose above its best and did not come back, and the training loss had risen too.",
    "never_learned": "The loss was still where it started after a fair share of the run.",
    "stalled": "The optimizer's updates no longer reached the stored weights, and the loss stood still.",
    "no_context": "The model predicted no better than the frequencies of the tokens alone, and its loss stood still.",
    "rank_collapse": "A weight matrix lost most of its stable rank.",
    "gap_to_baseline": "The loss stayed too far behind the baseline run of the same seed.",
}
# fmt: off
WORDS: Mapping[str, str] = {
    "amax": "largest magnitude of a tensor or block, from which its scale is computed",
    "arm": "one replay of an explanation: the same steps again with one thing healed",
    "baseline": "the BF16 run with the same seed, initial weights and batches",
    "branch": "a run that starts from a checkpoint of another run with some fields changed; an unchanged branch repeats its parent bit for bit",
    "cast": "how one operand is rounded: format, block shape, scale rule, amax policy, rounding mode and rotation",
    "early level": "median and robust spread of a signal's first measurements; a signal moves when it leaves them",
    "format": "sign, exponent bits, mantissa bits and bias of a number, and what its special codes are: a finite set of values, its grid",
    "gap": "validation loss minus that of the BF16 run of the same seed, at the last step that all compared runs reached",
    "coverage": "share of the floating-point operations of the model's matrix products whose operands are rounded",
    "group": "runs that differ in nothing but the seed",
    "killed": "the process of a run died without writing an end record; what it wrote until then is shown",
    "GEMM": "one of a linear layer's three matrix products: fprop (y = x W^T), dgrad (dx = dy W), wgrad (dW = dy^T x)",
    "grid": "all values that a format can represent",
    "half-life": "of a moving average: a measurement so far back counts half as much",
    "intervention": "something that acts between backward and optimizer step, or replaces a format, to save a run; each act is an event",
    "margin": "largest gap that still counts as equivalent to BF16",
    "master weights": "weights kept in FP32 beside the rounded ones, so that small updates add up",
    "nat": "unit of a cross-entropy with natural logarithms: 1 nat = 1.44 bits",
    "unigram entropy": "entropy of the frequencies of the tokens: the loss of a language model that knows nothing of the context",
    "non-finite": "NaN or infinite",
    "operand": "one tensor as one GEMM sees it; rounding belongs to the operand, because hardware scales blocks along what the GEMM contracts",
    "overflow": "a value beyond the largest finite value of the scaled format",
    "parity verdict": "equivalent to BF16 within the margin, worse, better, or undecided with the number of seeds that would decide it",
    "recipe": "the casts of all operands, where weights and optimizer states live, and what stays in high precision; published recipes have names",
    "run": "one training of the model with one config and one seed",
    "rule": "a test for collapse: it compares one metric with a limit for a number of steps",
    "saturate": "to round what is too large to the largest finite value instead of infinity",
    "seed": "the number that decides initial weights and batches; runs are compared seed by seed",
    "shadow": "the gradient of the same weights on the same batch without rounding",
    "site": "all operands of one tensor of a layer: weight, activation or gradient; update is the write-back of a weight without FP32 master",
    "stochastic rounding": "up or down by chance, so that a value is right on average",
    "stopped": "somebody asked a run to stop: it ended at its next report, and is not resumed",
    "stored": "without master weights: the weight itself is kept in the format, and updates are rounded into it",
    "t interval": "95 % interval of a mean over seeds by Student's t distribution; it needs two seeds and is honest for few",
    "ULP": "distance between the two values of a format around x: 2^(max(floor(log2 |x|), e_min) - M)",
    "underflow": "a non-zero value that is rounded to zero",
    "verdict": "that a run has collapsed: step, rule, metric, value and limit",
}
# fmt: on


def meaning(word: str) -> str:
    """The meaning of a word of `WORDS` or `RULES`, or of a metric by its name.  Raises KeyError."""
    return WORDS.get(word) or RULES.get(word) or METRICS[word].meaning


def glossary() -> dict[str, str]:
    """Every word with its meaning, in alphabetical order; a metric or event has its label as word."""
    metrics = {metric.label: metric.meaning for metric in METRICS.values()}
    events = {kind.label: kind.meaning for kind in EVENTS.values() if kind.name != "verdict"}
    found = {**metrics, **{f"{label} (event)": meaning for label, meaning in events.items()}, **RULES, **WORDS}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
