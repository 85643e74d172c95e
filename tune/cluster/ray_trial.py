"""Of a trial as Tune holds it: whose run it is, why it failed, and whether that is worth another try.

A death is, or storage that refused, or a device or memory that was not there.  An exception of the trial's own code is
not: the same weights on the same batches raise it again.
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
    """Whether an exception that a trial raised came from outside of it, so that another attempt may succeed."""
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
    """One line: the exception that the trial raised, or that its process died."""
    error = _error_of(trial)
    if isinstance(error, RayTaskError):
        return described(error.cause if isinstance(error.cause, BaseException) else error)
    if isinstance(error, RayActorError):
        if "low on memory" in str(error):  # Ray's memory monitor; of any SIGKILL Ray says that memory *may* be why
            return "the trial's process was killed: its node ran low on memory"
        return "the trial's process died"
    return "unknown" if error is None else described(error)


def once_more(trial: TuneTrial) -> bool:
    """Whether a dead trial is worth one more try only: it found no memory or no storage, and would go on so."""
    reason = why_failed(trial)
    return bool(_MEMORY.search(reason)) or reason.startswith(StorageRefused.__name__)


def _error_of(trial: TuneTrial) -> BaseException | None:
    """The exception that Tune stored for the trial in this process's own folder."""
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return None
    # Not a results folder: Tune wrote the file a moment ago, in this process, beside Ray's session on this machine.
    # Whoever made the exception had it unpickled here by Ray already.
    error = cloudpickle.loads(Path(file).read_bytes())
    return error if isinstance(error, BaseException) else None


def run_of(trial: TuneTrial) -> str:
    """The run's name; Ray's own names of trials are not ours."""
    return str(trial.config["job"]["trial"]["run"])


def plan_of(trial: TuneTrial) -> Trial:
    """Our plan of the trial, as it was given to Tune."""
    return Trial.from_json(trial.config["job"]["trial"], "trial")
