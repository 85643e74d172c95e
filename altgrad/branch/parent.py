"""The config of a branch: its parent's, with some fields changed, and `branch_from`, which names parent and step.

The initial weights, the batches and the size of the model are the parent's: a checkpoint fits nothing else.  All
numeric fields, interventions, optimizer settings, limits of the collapse rules, what is measured, the number of steps
and the batches that are left out may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from altgrad.branch.checkpoints import checkpoint_steps
from altgrad.config.train_config import ConfigError, TrainConfig, make_config
from altgrad.results import read_start
from altgrad.storage.folder import Folder
from altgrad.text.error_hints import shown

CHANGEABLE = TrainConfig.of_kind("numeric", "rescue", "optimisation", "measuring", "judging", "running", "planning") | {
    "max_steps",
    "eval_batches",
    "skip_batches",
}
_INSTEAD: Mapping[str, str] = {
    "seed": "; rounding_seed changes the random numbers of rounding, skip_batches the batches",
    "data": "; skip_batches leaves batches out",
    "start_from": "; its weights, moments and place in the data are those of the checkpoint",
}


@dataclass(frozen=True)
class Branch:
    """A branch of the run in the folder `parent` (path or URI) from its checkpoint of `step`; 0: from its start.

    changes: config fields that differ from the parent's.  forget: see `TrainConfig.branch_from`.
    """

    parent: str
    step: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    forget: tuple[str, ...] = ()

    def __init__(self, parent: str | Folder, step: int, forget: tuple[str, ...] = (), **changes: Any) -> None:
        for name, value in (("parent", str(parent)), ("step", step), ("changes", changes), ("forget", forget)):
            object.__setattr__(self, name, value)

    def config(self) -> TrainConfig:
        """The config of the branch.  Raises ConfigError for a step without checkpoint, or a field that may not change.

        Raises FileNotFoundError or RecordError if the parent's folder holds no readable run.
        """
        folder = Folder.at(self.parent)
        there = checkpoint_steps(folder)
        if self.step and self.step not in there:
            known = f"there: {', '.join(map(str, there))}" if there else "there is none"
            raise ConfigError(f"{folder}: no checkpoint of step {self.step}; {known}; 0 starts where the run did")
        origin: dict[str, Any] = {"run": self.parent, "step": self.step}
        if self.forget:
            origin["forget"] = list(self.forget)
        config = parent_config(folder).altered(**self.changes, branch_from=origin)
        return with_parent(config)


def parent_config(run: Folder) -> TrainConfig:
    """The config in a run's `run.json`; a field that its version did not know has its default."""
    try:
        fields = read_start(run)["config"]
    except FileNotFoundError:
        raise ConfigError(f"branch_from: {run}: no run.json in it; give the folder of a run") from None
    known = {name: value for name, value in fields.items() if name in TrainConfig.model_fields}
    return make_config(known, source=f"{run}/run.json")


def with_parent(config: TrainConfig) -> TrainConfig:
    """A config with `branch_from`, completed by its parent's fields; a config without it is returned unchanged.

    Raises ConfigError if a field differs from the parent's that a branch cannot change, or if no step is left to train.
    """
    if config.branch_from is None:
        return config
    run = Folder.at(config.branch_from["run"])
    parent = parent_config(run)
    whole = make_config({**parent.model_dump(), **config.model_dump(exclude_unset=True)}, source="branch_from")
    theirs = parent.model_dump()
    for name, value in whole.model_dump().items():
        if name not in CHANGEABLE | {"branch_from"} and value != theirs[name]:
            raise ConfigError(
                f"{name}={shown(value)}: a branch of {run} keeps {shown(theirs[name])}{_INSTEAD.get(name, '')}"
            )
    step = config.branch_from["step"]
    if whole.max_steps <= step:
        raise ConfigError(
            f"max_steps={whole.max_steps} and a branch from step {step} of {run}: no step is left; branch at an "
            "earlier step, or give more steps"
        )
    return whole


def changes_from_parent(config: TrainConfig, parent: TrainConfig) -> dict[str, Any]:
    """The fields of a branch that differ from its parent's, besides `branch_from`."""
    theirs = parent.model_dump(mode="json")
    own = config.model_dump(mode="json", exclude={"branch_from"})
    return {name: value for name, value in own.items() if value != theirs[name]}


def branch_record(config: TrainConfig) -> dict[str, Any] | None:
    """What `run.json` says of a branch: parent folder and its run's name, step, changed fields; None for other runs."""
    origin = config.branch_from
    if origin is None:
        return None
    folder = Folder.at(origin["run"])
    info = read_start(folder)
    return {
        "parent": origin["run"],
        "run": info.get("run") or folder.name,
        "step": origin["step"],
        "changes": changes_from_parent(config, parent_config(folder)),
        **({"forget": origin["forget"]} if origin.get("forget") else {}),
    }
