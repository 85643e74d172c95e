"""Reads Tune's trials: their run, the reason of a failure, and whether a retry may succeed.

A retry may succeed after the death of a process, a refusal of storage, or a lack of memory or of a device.  An
exception of the trial's own code would be raised again, because a retry uses the same weights and batches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from altgrad.storage.patience import StorageRefused
from altgrad.text.terminal_output import one_line
from tune.plan.trial import Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

_MEMORY = re.compile(r"^(MemoryError|OutOfMemoryError)\b|out of memory|can't allocate memory|low on memory")
_DEVICE = ("AcceleratorError", "DistBackendError", "DistNetworkError", "RankDied")  # by name: their classes need torch
_LOCAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def may_pass(error: BaseException) -> bool:
    """Whether the cause of a trial's exception lies outside the trial, so that another attempt may succeed."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return may_pass(error.cause)
    rays = type(error).__module__.split(".")[0] == "ray"
    outside = rays or isinstance(error, MemoryError) or type(error).__name__ in _DEVICE
    storage = isinstance(error, OSError) and not isinstance(error, _LOCAL)
    return outside or storage or bool(_MEMORY.search(described(error)))


def described(error: BaseException) -> str:
    """Class and first line of an exception."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {one_line(first)}"


def why_failed(trial: TuneTrial) -> str:
    """The reason of a trial's failure in one line: its exception, or the death of its process."""
    error = _error_of(trial)
    if isinstance(error, RayTaskError):
        return described(error.cause if isinstance(error.cause, BaseException) else error)
    if isinstance(error, RayActorError):
        # The words of Ray's memory monitor; of any other SIGKILL Ray only suspects that memory was the reason.
        if "low on memory" in str(error):
            return "the trial's process was killed: its node ran low on memory"
        return "the trial's process died"
    return "unknown" if error is None else described(error)


def once_more(trial: TuneTrial) -> bool:
    """Whether a failed trial is retried only once: it lacked memory or storage, which will probably stay so."""
    reason = why_failed(trial)
    return bool(_MEMORY.search(reason)) or reason.startswith(StorageRefused.__name__)


def _error_of(trial: TuneTrial) -> BaseException | None:
    """The exception that Tune stored for the trial in this process's own folder."""
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return None
    # Unpickling is safe here: Tune wrote the file in this process a moment ago, into a private folder and not a results
    # folder, and Ray had already unpickled the exception in this process.
    error = cloudpickle.loads(Path(file).read_bytes())
    return error if isinstance(error, BaseException) else None


def run_of(trial: TuneTrial) -> str:
    """The name of the trial's run; Ray's own names of trials are not used."""
    return str(trial.config["job"]["trial"]["run"])


def plan_of(trial: TuneTrial) -> Trial:
    """The planned trial that was given to Tune."""
    return Trial.from_json(trial.config["job"]["trial"], "trial")
