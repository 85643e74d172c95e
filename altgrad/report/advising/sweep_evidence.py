"""What the other runs of a sweep say about a collapse: runs that trained where this one did not, and how to do so.

They are evidence of the same weights and batches, which general advice is not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from altgrad.compare import Row
from altgrad.compare.comparison_table import gap_and_step
from altgrad.compare.parity.confounds import confounds
from altgrad.config.published import published_fields
from altgrad.config.shipped_configs import CONFIGS
from altgrad.config.train_config import TrainConfig, load_config
from altgrad.report.advising.advice import advise
from altgrad.report.evidence import Evidence
from altgrad.text.foreign_text import as_code

_HAPPENED: Mapping[str, str] = {
    "non_finite": "reached NaN or inf at step {}",
    "diverged": "diverged at step {}",
    "degraded": "had got worse on held-out data by step {}",
    "stalled": "froze at step {}",
    "never_learned": "had learned nothing by step {}",
    "no_context": "had learned no more than how frequent each token is by step {}",
    "rank_collapse": "had lost the rank of its weights by step {}",
    "gap_to_baseline": "had fallen behind BF16 for good by step {}",
}
_NEITHER = TrainConfig.of_kind("running", "planning", "judging") | {"format"}
_MEASURING = TrainConfig.of_kind("measuring")


def happened(row: Row) -> str:
    """A collapse in one plain sentence: `E7M0 (stored) froze at step 275 of 500.`"""
    what = _HAPPENED.get(row.collapse_rule or "", "collapsed at step {}").format(row.collapse_step)
    return f"{row.label} {what} of {row.max_steps}."


def survivors_like(row: Row, rows: Iterable[Row]) -> list[tuple[Row, tuple[str, ...]]]:
    """Completed runs of the same format and seed from the same weights and batches, and what each does differently.

    Those with the fewest differences come first, then those with the smaller gap.
    """
    found = []
    for other in rows:
        if other.format != row.format or other.seed != row.seed or other.status != "completed" or other.collapsed:
            continue
        if other.settings is None or row.settings is None or other.origin.obstacle(row.origin) or other.non_finite:
            continue
        differences = confounds(other.settings, other.origin, row.settings, row.origin)
        if differences:
            found.append((other, differences))
    return sorted(found, key=lambda one: (len(one[1]), one[0].gap is None, one[0].gap or 0.0))


def survivor_sentence(other: Row, differences: Iterable[str]) -> str:
    """`E7M0 (…) completed, with master weights vs stored: gap +0.002 at step 500`."""
    return f"{other.label} completed, with {', '.join(differences)}: gap {gap_and_step(other)}"


@dataclass(frozen=True)
class Suggestion:
    """Config fields to set: `said` is why, as markdown; `tried`: a sentence for each run of the sweep that has them."""

    changes: Mapping[str, Any]
    said: str
    tried: tuple[str, ...]


def suggestions(evidence: Evidence, row: Row, rows: Iterable[Row]) -> list[Suggestion]:
    """What to try against a collapse: first what other runs of the sweep have tried and completed with."""
    left = {other.run: (other, differs) for other, differs in survivors_like(row, rows)}
    found = []
    for advice in advise(evidence):
        proofs = [proof for proof in left.values() if _has(proof[0], advice.changes)]
        for other, _ in proofs:
            del left[other.run]
        found.append(Suggestion(advice.changes, str(advice), tuple(survivor_sentence(*proof) for proof in proofs)))
    for other, differs in left.values():
        changes = _changes(evidence.config, other)
        if changes:
            said = f"what {as_code(other.run)} does differently"
            found.append(Suggestion(changes, said, (survivor_sentence(other, differs),)))
    return sorted(found, key=lambda one: not one.tried)  # stable


def _has(other: Row, changes: Mapping[str, Any]) -> bool:
    assert other.settings is not None  # of a survivor
    return all(other.settings.config.get(name) == value for name, value in changes.items())


def _changes(config: TrainConfig, other: Row) -> dict[str, Any]:
    """The fields of a completed run that differ from a config, without those that cannot change a loss."""
    assert other.settings is not None  # of a survivor
    own, theirs = config.model_dump(), other.settings.config
    names = own.keys() & theirs.keys() - _NEITHER - _MEASURING
    return {name: theirs[name] for name in own if name in names and theirs[name] != own[name]}


def sweep_command(config: TrainConfig, changes: Mapping[str, Any]) -> str:
    """A command that trains a config with some fields changed, and its BF16 baseline."""
    template = load_config(CONFIGS / "bf16_baseline.yaml").model_dump()
    wanted = config.model_dump() | dict(changes)
    recipe = wanted["recipe"]
    usual = template | dict(published_fields(recipe)) | {"recipe": recipe}
    start = ["--formats", wanted["format"]] if recipe is None else ["--recipes", recipe]
    words = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in wanted.items()
        if name not in _NEITHER and value != usual[name]
    ]
    return shlex.join(["altgrad", "sweep", *start, *(["--set", *words] if words else [])])
