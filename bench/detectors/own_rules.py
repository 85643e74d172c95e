"""The collapse rules of altgrad on a recorded run: together as a run has them, and each alone."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from altgrad.collapse import CollapseDetector, gap_to_baseline
from altgrad.config.train_config import TrainConfig
from altgrad.corpus.unigram import unigram_entropy
from altgrad.training.data import load_corpus
from bench.detectors.recording import Recording

ALONE = (
    "non_finite", "diverged", "degraded", "stalled", "rank_collapse", "never_learned", "no_context", "gap_to_baseline",
)  # fmt: skip


def records(run: Recording, baseline: Recording | None) -> list[dict[str, Any]]:
    """The records that the detector of this run would have got, with its gap to the baseline."""
    gap = None
    if baseline is not None:
        gap = gap_to_baseline(run.plan.config(), run.vocabulary, baseline.losses)
    found = []
    for row in run.rows:
        record = {name: value for name, value in row.items() if value is not None}
        if row["step"] in run.held_out:
            record["validation_loss"] = run.held_out[row["step"]]
        behind = None if gap is None else gap.update(row["step"], row["loss"])
        if behind is not None:
            record["gap_to_baseline"] = behind
        found.append(record)
    return found


def stopped(run: Recording, baseline: Recording | None, only: str | None = None) -> tuple[int, str] | None:
    """(step, rule) of the verdict; None without one.  only: the name of the one rule that judges."""
    return judged(run, records(run, baseline), only)


def judged(run: Recording, seen: Iterable[Mapping[str, Any]], only: str | None = None) -> tuple[int, str] | None:
    """As `stopped`, from the records of the run."""
    entropy = None if run.vocabulary is None else _unigram_entropy(run.plan.config().data)
    detector = CollapseDetector(run.plan.config(), run.vocabulary, entropy)
    if only is not None:
        detector._rules = [rule for rule in detector._rules if rule.name == only]
    for record in seen:
        if detector.update(record) is not None:
            break
    return None if detector.verdict is None else (detector.verdict.step, detector.verdict.rule)


@functools.cache
def _unigram_entropy(data: str) -> float:
    """As a run on these data stores it: the faults of the benchmark are planted in batches, not in the text."""
    return unigram_entropy(load_corpus(TrainConfig(data=data)).training)
