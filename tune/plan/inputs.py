"""Checks trials before anything is created: the device exists, task and data can be read, layer globs match a layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from altgrad.config.train_config import BUILT_IN_TASK, ConfigError, TrainConfig
from altgrad.text.error_hints import cut
from tune.plan.resources.machine import Machine
from tune.plan.trial import Trial
from tune.plan.trials import automatic_model

if TYPE_CHECKING:
    from altgrad.training.task.found_task import FoundTask
    from altgrad.training.task.task_batches import TaskBatches

_DATA_FIELDS = set(TrainConfig.of_kind("model", "data"))  # fields that decide whether data can be used
_TASK_FIELDS = _DATA_FIELDS | {"accumulate"} | TrainConfig.where(lambda field: field.by_task)
_OF_LAYERS = {"layer_formats", "layer_gemms"}
_GIVEN = {"task", "task_args", "start_from", "data", "tokenizer", "layer_formats", "layer_gemms", "phases", "device"}


def any_given(trials: Sequence[Trial]) -> bool:
    """Whether a trial has a task, data, weights, layers or a device that is not the default, and may not exist."""
    default = TrainConfig().model_dump(include=_GIVEN)
    return any(trial.config.model_dump(include=_GIVEN) != default for trial in trials)


def check_inputs(trials: Sequence[Trial], machine: Machine, *, uses_gpus_here: bool = False) -> list[str]:
    """Check all trials; return one sentence per text about the data read from it.  Raises ConfigError.

    uses_gpus_here: the trials hold GPUs of this machine; then torch is asked whether it can use them, because only the
    driver was asked before.  Tasks that lie in the current folder become importable for the processes that this one
    starts.
    """
    if uses_gpus_here:
        _check_torch_finds(machine)
    from altgrad.experiment.checkpoints.stored_weights import stored_start  # torch
    from altgrad.training.task.divided_batch import check_division
    from altgrad.training.task.unread_fields import check_all_read

    starts: set[str] = set()
    asked: set[str] = set()
    checked: dict[str, tuple[FoundTask, TaskBatches]] = {}
    for trial in trials:
        config = trial.config
        if config.device.startswith("cuda") and not machine.gpus:
            raise ConfigError(f"{trial.run}: device={config.device!r}: {machine.gpu_note}; use device=cpu or auto")
        key = config.model_dump_json(include=_DATA_FIELDS)
        if key not in checked:
            checked[key] = _read(config)
        fields = config.model_dump_json(include=_TASK_FIELDS)
        if fields not in asked:
            asked.add(fields)
            check_all_read(config, [("model", automatic_model(machine))])
            if config.accumulate > 1:
                check_division(checked[key][1], checked[key][0].said, config.seed)
        if config.start_from is not None and config.start_from not in starts:
            starts.add(config.start_from)
            stored_start(config)
        if config.layer_formats or config.layer_gemms or any(phase.keys() & _OF_LAYERS for phase in config.phases):
            _check_layers(trial, checked[key][0])
    if any(task.is_from_here for task, _ in checked.values()):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
    sources = [batches.source for _, batches in checked.values() if batches.source is not None]
    return list(dict.fromkeys(source.sentence() for source in sources))


def _check_torch_finds(machine: Machine) -> None:
    """Raise ConfigError if torch finds no GPU although the driver does: each trial would fail with the same reason."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{machine.gpu_note}, but torch {torch.__version__} cannot use any; install a torch build for this driver, "
            "or train on the CPU with --gpus-per-trial 0"
        )


def _read(config: TrainConfig) -> tuple[FoundTask, TaskBatches]:
    """The task and its data; of a foreign one first batches too.  Raises ConfigError for whatever goes wrong in it."""
    from altgrad.training.task.found_task import find_task  # torch

    task = find_task(config)
    if config.task == BUILT_IN_TASK:
        return task, task.batches(config)
    try:
        batches = task.batches(config)
        batches.training(1)
        batches.validation()
    except ConfigError:
        raise
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"{task.said}: reading its data failed: {type(error).__name__}: {cut(str(error))}") from error
    return task, batches


def _check_layers(trial: Trial, task: FoundTask) -> None:
    """Raise ConfigError if a glob over layer names matches no layer; the model is made on `meta`, without weights.

    Somebody else's model may need real tensors: its trial says it.
    """
    import torch

    from altgrad.quantization.quantize import quantize_model

    if trial.config.task != BUILT_IN_TASK:
        return
    try:
        with torch.device("meta"):
            config = trial.config.altered(native_fp8=False)
            quantize_model(task.model(config), config, total_steps=config.max_steps)
    except ValueError as error:
        raise ConfigError(f"{trial.run}: {error}") from error
