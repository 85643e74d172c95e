"""Finds fields of a config that were given, but that its task never reads: they would change nothing, in silence.

What a task reads is not declared anywhere.  It is given a config that notes which of its fields are asked for, while
it makes its model, its first batches and its optimizer.  A field that stands at its default was not given, or might as
well not have been.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Collection
from typing import Any

import torch

from altgrad.config.sizes.gpt_sizes import GPTShape
from altgrad.config.train_config import BUILT_IN_TASK, ConfigError, TrainConfig
from altgrad.text.error_hints import cut, shown
from altgrad.training.step.step_random import StepRandom
from altgrad.training.task.batch import rows
from altgrad.training.task.found_task import FoundTask, find_task

FIELDS = TrainConfig.where(lambda field: field.by_task)
_WHOLE = {"__dict__", "model_dump", "model_dump_json", "model_copy", "copy", "dict", "json"}  # read all fields
_SIZES = {"n_layer", "n_head", "n_embd", "block_size"}


class _Noting(TrainConfig):
    """A config that notes which fields are read, in the set `noted` of its `__dict__`."""

    def __getattribute__(self, name: str) -> Any:
        if name in FIELDS or name in _WHOLE:
            noted = object.__getattribute__(self, "__dict__")["noted"]
            noted |= FIELDS if name in _WHOLE else {name}
        return super().__getattribute__(name)

    @property
    def shape(self) -> GPTShape:
        """The sizes, which note what is read of them: a size that a config leaves out is its preset's."""
        held = object.__getattribute__(self, "__dict__")
        plain = _plain(held).shape
        found = object.__new__(_NotingShape)
        vars(found).update(vars(plain) | {"noted": held["noted"]})
        return found

    def altered(self, **changes: Any) -> TrainConfig:
        """As that of a plain config; reads of the copy are noted, too."""
        held = object.__getattribute__(self, "__dict__")
        return _noting(_plain(held).altered(**changes), held["noted"])


class _NotingShape(GPTShape):
    def __getattribute__(self, name: str) -> Any:
        if name in _SIZES:
            noted = object.__getattribute__(self, "__dict__")["noted"]
            noted |= {name, "model"}
        return super().__getattribute__(name)


def _plain(held: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_construct(**{name: held[name] for name in TrainConfig.model_fields})


def _noting(config: TrainConfig, noted: set[str]) -> TrainConfig:
    found = _Noting.model_construct(**vars(config))
    object.__getattribute__(found, "__dict__")["noted"] = noted
    return found


def check_all_read(config: TrainConfig, automatic: Collection[tuple[str, Any]] = ()) -> None:
    """Raise ConfigError, one line, if a field was given that the task of a config never reads.

    automatic: fields with values that nobody gave.  What fails in making the task, its model or its data is not
    reported here.
    """
    default = TrainConfig()
    given = {name for name in FIELDS if getattr(config, name) != getattr(default, name)}
    given -= {name for name, value in automatic if getattr(config, name) == value}
    if config.task == BUILT_IN_TASK or not given:
        return
    noted: set[str] = set()
    try:
        task, batch_rows = _use(config, noted, given)
    except Exception:  # of somebody else's code, which the trial itself will report
        return
    unread = [name for name in TrainConfig.model_fields if name in given - noted]
    if unread == ["batch_size"] and batch_rows != config.batch_size:
        raise ConfigError(
            f"batch_size={config.batch_size}: {task.said} does not read it, and its batches have {batch_rows} rows; "
            "leave it out"
        )
    unread = [name for name in unread if name != "batch_size" or batch_rows != config.batch_size]
    if unread:
        fields = ", ".join(f"{name}={shown(getattr(config, name))}" for name in unread)
        raise ConfigError(f"{fields}: {task.said} does not read {_it(unread)}; leave {_it(unread)} out{_takes(task)}")


def _it(names: Collection[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _takes(task: FoundTask) -> str:
    """What may be meant instead: the task's own arguments."""
    try:
        takes = list(inspect.signature(type(task.task)).parameters)
    except (TypeError, ValueError):
        takes = []
    return f", or give an argument of the task by --task-arg: {cut(', '.join(takes))}" if takes else ""


def _use(config: TrainConfig, noted: set[str], wanted: set[str]) -> tuple[FoundTask, int]:
    """(the task, number of rows of its first batch), after all was made of it that a run makes before its first step.

    If a field is unread then, and the task or its model has kept the config, the loss of a batch is computed, too.
    """
    task, watched = find_task(config), _noting(config, noted)
    batches = task.batches(watched)
    batch = batches.training(1)
    batches.validation()
    del batches
    if wanted <= noted:
        return task, rows(batch)
    model = task.model(watched)
    task.optimizer(model, watched)
    kept = weakref.ref(watched)
    del watched
    gc.collect()
    if kept() is not None and not wanted <= noted:
        with StepRandom(torch.device("cpu")).borrowed(), torch.no_grad():
            task.loss(model, batch)
    return task, rows(batch)
