"""Finds the task that a config names, and calls its members, with the defaults of those that it lacks.

`gpt` and other single words are the shipped tasks or entry points of the group `altgrad.tasks`; `package.module:name`
is an object of an importable module, and `package.module` its `task`.  A class or a function is called with the
`task_args` of the config.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from altgrad.config.train_config import BUILT_IN_TASK, SHIPPED_TASKS, ConfigError, TrainConfig
from altgrad.text.error_hints import cut, did_you_mean, kind, shown
from altgrad.training.data import Batches
from altgrad.training.optim import build_optimizer
from altgrad.training.step.step_random import StepRandom
from altgrad.training.task.gpt import BuiltInGPT
from altgrad.training.task.protocol import Batch
from altgrad.training.task.task_batches import TaskBatches

GROUP = "altgrad.tasks"  # of entry points


def call_model(model: Any, batch: Batch) -> Any:
    """What the model returns for a batch: a tuple is passed as arguments, a dict as keywords."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def check_call(model: nn.Module, batch: Batch) -> None:
    """Raise ConfigError if a model, which is to return the loss, cannot be called with a batch as `call_model` does."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # no signature to read
        return
    given, named = ((), batch) if isinstance(batch, dict) else (batch if isinstance(batch, tuple) else (batch,), {})
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        what = f"the keys {', '.join(named)}" if named else "1 entry" if len(given) == 1 else f"{len(given)} entries"
        forward = f"{type(model).__name__}.forward({', '.join(signature.parameters)})"
        raise ConfigError(
            f"{forward} does not take a batch with {what} ({error}); give a model that returns a batch's loss, or a "
            "task with a method loss(model, batch)"
        ) from None


@dataclass(frozen=True)
class FoundTask:
    """A task under the name by which it was found.  `module`: where it is defined; None for the built-in one."""

    name: str
    task: Any  # a `Task`, which may lack the optional members
    module: ModuleType | None

    @property
    def unit(self) -> str:
        """That of the loss, see `Task`."""
        return str(self.task.unit)

    @property
    def model_has_loss(self) -> bool:
        """Whether the model returns the loss itself, so that the model alone can be compiled."""
        return not callable(getattr(self.task, "loss", None))

    def loss(self, model: Any, batch: Batch) -> Any:
        """As the task's, see `Task.loss`; what it returns is read by `read_loss`."""
        return call_model(model, batch) if self.model_has_loss else self.task.loss(model, batch)

    @property
    def weighs(self) -> bool:
        """Whether the task says what a part of a batch counts."""
        return callable(getattr(self.task, "weight", None))

    def weight(self, batch: Batch) -> float:
        """What the mean loss of a part of a batch counts, see `Task.weight`.  Raises ConfigError for no such number."""
        found = self.task.weight(batch)
        number = found.item() if isinstance(found, torch.Tensor) and found.numel() == 1 else found
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise ConfigError(
                f"{self.said}: weight(batch) gave {shown(number)}; give a number from 0, such as of tokens"
            )
        return float(number)

    def model(self, config: TrainConfig) -> nn.Module:
        """The task's model, with random generators that depend on the seed alone.  Raises ConfigError for no module."""
        random = StepRandom(torch.device("cpu"))
        with random.borrowed():
            random.seed("model", config.seed)
            torch.manual_seed(config.seed)
            model = self.task.model(config)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"{self.said}: model(config) gave {kind(model)}; give a torch.nn.Module")
        lazy = [name for name, parameter in model.named_parameters() if isinstance(parameter, UninitializedParameter)]
        if lazy:
            raise ConfigError(
                f"{self.said}: model(config) has lazy layers without a size ({', '.join(lazy[:2])}); run one batch "
                "through the model before it is returned"
            )
        return model

    def batches(self, config: TrainConfig) -> TaskBatches:
        """The task's data.  Raises ConfigError for data of an unknown kind."""
        data, classes = self.task.data, self.classes(config)
        whole = getattr(self.task, "whole", None)
        return TaskBatches(config, data(config, "training"), data(config, "validation"), classes, self.said, whole)

    def classes(self, config: TrainConfig) -> int | None:
        """Number of classes of a cross-entropy in nats; None if it is not known, or the loss is none."""
        classes = getattr(self.task, "classes", None)
        if self.unit != "nats" or classes is None:
            return None
        found = classes(config)
        if found is not None and (not isinstance(found, int) or found < 1):
            raise ConfigError(f"{self.said}: classes(config) gave {shown(found)}; give a whole number from 1, or None")
        return found

    def optimizer(self, model: nn.Module, config: TrainConfig) -> Optimizer:
        """The task's optimizer, or AdamW by the config.  Raises ConfigError if the task gives something else."""
        own = getattr(self.task, "optimizer", None)
        found = build_optimizer(model, config) if own is None else own(model, config)
        if not isinstance(found, Optimizer):
            raise ConfigError(
                f"{self.said}: optimizer(model, config) gave {kind(found)}; give one torch.optim.Optimizer, "
                "or train with several in a loop of your own with quantize_"
            )
        try:
            inspect.signature(found.step).bind()
        except TypeError:
            raise ConfigError(
                f"{self.said}: {type(found).__name__}.step() needs a closure, which is not given here; use an "
                "optimizer that steps with the gradients of one backward pass"
            ) from None
        if own is not None:
            self._check_follows_rate(found, own(model, config.altered(learning_rate=2 * config.learning_rate)))
        return found

    def _check_follows_rate(self, found: Optimizer, doubled: Optimizer) -> None:
        """Raise ConfigError if the rates of the task's optimizer are the same at twice the config's rate.

        `--lr`, half the rate as a control, and every table would speak of a rate that nothing trains with.
        """
        rates = [float(group["lr"]) for group in found.param_groups]
        if rates == [float(group["lr"]) for group in doubled.param_groups]:
            largest = max(rates)
            raise ConfigError(
                f"{self.said}: optimizer(model, config) has the rate {largest:g} whatever the config's learning_rate "
                f"is; use lr=config.learning_rate, or a multiple of it, and --set learning_rate={largest:g}"
            )

    @property
    def is_from_here(self) -> bool:
        """Whether its module lies in the current folder, which is on no path of another process."""
        file = None if self.module is None else getattr(self.module, "__file__", None)
        return file is not None and Path(file).resolve().is_relative_to(Path.cwd())

    @property
    def said(self) -> str:
        """The task in an error: `task regression`."""
        return f"task {cut(self.name)}"

    @property
    def digest(self) -> str:
        """A hash of the task's name, unit, identity and source: of two tasks that are the same it is equal."""
        identity = getattr(self.task, "identity", "")
        parts = (self.name, self.unit, str(identity), _source_of(self.module))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def find_task(config: TrainConfig, batches: Batches | None = None) -> FoundTask:
    """The task of a config; `batches`: data for the built-in one.  Raises ConfigError, one line, if there is none."""
    name = config.task
    if name == BUILT_IN_TASK:
        if config.task_args:
            raise ConfigError(f"task={name}: takes no arguments ({', '.join(config.task_args)}); it reads the config")
        return FoundTask(name, BuiltInGPT(batches), None)
    where = f"task={shown(name)}"
    module, member = _place(name, where)
    found = _member(_imported(module, where), member, where)
    if isinstance(found, type) or not hasattr(found, "model"):
        found = _called(found, config.task_args, where)
    elif config.task_args:
        given = ", ".join(config.task_args)
        raise ConfigError(f"{where}: is an object and takes no arguments ({given}); name its class")
    _check_members(found, where)
    return FoundTask(name, found, None if module.startswith("altgrad.") else sys.modules[module])


def _place(name: str, where: str) -> tuple[str, str]:
    """(module, member) of a task's name."""
    module, colon, member = name.partition(":")
    if colon or "." in name:
        return module, member or "task"
    if name in SHIPPED_TASKS:
        return f"altgrad.tasks.{name}", "task"
    installed = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    if name not in installed:
        known = [BUILT_IN_TASK, *SHIPPED_TASKS, *installed]
        near = did_you_mean(name, known)
        raise ConfigError(f"{where}: no such task; give one of {', '.join(known)}, or package.module:name{near}")
    return _place(installed[name], where)


def _imported(module: str, where: str) -> ModuleType:
    """Import a module; also from the current folder, as `python -m` does."""
    top = module.partition(".")[0]
    here = str(Path.cwd())
    if here not in sys.path and (Path(f"{top}.py").is_file() or Path(top).is_dir()):
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ConfigError as error:  # a package that the module needs is missing
        raise ConfigError(f"{where}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: no module {error.name!r} here; give package.module:name") from error
        raise ConfigError(f"{where}: importing {module} failed: {error}") from error
    except SystemExit as error:  # a script that parses the command line, say
        raise ConfigError(
            f"{where}: importing {module} ended the process (exit code {error.code}); put what it does as a script "
            "under `if __name__ == '__main__':`"
        ) from error
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"{where}: importing {module} failed: {type(error).__name__}: {cut(str(error))}") from error


def _member(module: ModuleType, name: str, where: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, [known for known in vars(found) if not known.startswith("_")])
            raise ConfigError(f"{where}: {module.__name__} has no {name!r}{near}")
        found = getattr(found, part)
    return found


def _called(factory: Any, arguments: Mapping[str, Any], where: str) -> Any:
    if not callable(factory):
        raise ConfigError(f"{where}: is {kind(factory)}; give a task, or a class or function that makes one")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(factory).parameters) or "nothing"
        raise ConfigError(f"{where}: --task-arg: {error}; it takes {takes}") from error
    except ValueError:  # no signature to read
        pass
    try:
        return factory(**arguments)
    except ConfigError:
        raise
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"{where}: making the task failed: {type(error).__name__}: {cut(str(error))}") from error


def _check_members(task: Any, where: str) -> None:
    for name in ("model", "data"):
        if not callable(getattr(task, name, None)):
            raise ConfigError(f"{where}: {type(task).__name__} has no method {name!r}, which a task needs")
    unit = getattr(task, "unit", None)
    if not isinstance(unit, str):
        raise ConfigError(f"{where}: unit={shown(unit)}: give that of the loss: 'nats' for a cross-entropy, or ''")


def _source_of(module: ModuleType | None) -> str:
    """A hash of the lines of a module, without empty ones and comments; "" if there is no file."""
    file = None if module is None else getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return ""
    lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()
