"""What the other runs of a sweep say about a collapse: runs that trained where this one did not, and how to do so.

They are evidence of the same weights and batches, which general advice is not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from altgrad.compare import Row
from altgrad.compare.comparison_table import gap_and_step
from altgrad.compare.parity.confounds import confounds
from altgrad.config.published import published_fields
from altgrad.config.shipped_configs import CONFIGS
from altgrad.config.train_config import TrainConfig, load_config

_HAPPENED: Mapping[str, str] = {
    "non_finite": "reached NaN or inf",
    "diverged": "diverged",
    "stalled": "froze",
    "never_learned": "never learned",
    "rank_collapse": "lost the rank of its weights",
    "gap_to_baseline": "fell behind BF16",
}
_NEITHER = TrainConfig.of_kind("running", "planning", "judging") | {"format"}


def happened(row: Row) -> str:
    """A collapse in one plain sentence: `E7M0 (stored) froze at step 275 of 500.`"""
    what = _HAPPENED.get(row.collapse_rule or "", "collapsed")
    return f"{row.label} {what} at step {row.collapse_step} of {row.max_steps}."


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
