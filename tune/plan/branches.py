"""Sweeps of branches: every trial starts from the same checkpoint of another run (`--branch-from`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from altgrad.branch import Branch, with_parent
from altgrad.branch.checkpoints import checkpoint_steps
from altgrad.branch.parent import parent_config
from altgrad.compare.pairing import NUMERICS
from altgrad.config.train_config import TrainConfig, make_config
from altgrad.storage.folder import Folder, absolute
from tune.plan.options import SweepError, SweepOptions


def branched(
    sources: Iterable[tuple[str, TrainConfig]], options: SweepOptions, overrides: dict[str, Any]
) -> Iterator[tuple[str, TrainConfig]]:
    """The trials of a plan as branches: their numeric fields and the overrides on top of the parent's fields.

    Without `--branch-from` they are returned unchanged.  Raises SweepError or ConfigError for what cannot be branched.
    """
    if options.branch_from is None:
        if options.at is not None:
            raise SweepError("--at: the step at which --branch-from RUN_DIR branches; give both")
        yield from sources
        return
    if options.first_seeds > 1:
        raise SweepError("--branch-from with --seeds: a branch has the seed of its parent; give one seed")
    location = absolute(options.branch_from)
    run = Folder.at(location)
    parent = parent_config(run)
    steps = checkpoint_steps(run)
    if options.at is None and not steps:
        raise SweepError(f"--branch-from {run}: no checkpoint in it; --at 0 starts where the run did")
    step = steps[-1] if options.at is None else options.at
    origin = Branch(location, step, max_steps=overrides.get("max_steps", parent.max_steps)).config().branch_from
    for name, config in sources:
        numeric = config.model_dump(include=set(NUMERICS))
        fields = {**parent.model_dump(), **numeric, **overrides, "branch_from": origin}
        yield name, with_parent(make_config(fields, source=name))
