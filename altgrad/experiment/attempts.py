"""Checks of a folder in which an earlier attempt of a run may have left results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.results import RecordError, ended_as, read_start, read_table
from altgrad.results.reading.attempt_time import seconds_of_attempt
from altgrad.results.reading.common_start import other_beginning
from altgrad.storage.folder import Folder
from altgrad.training.compile.policy import How


class AnotherRunError(ConfigError):
    """The folder holds a run with another start; nothing in it was changed."""


def next_attempt(folder: Folder, config: TrainConfig) -> tuple[int, How | None]:
    """(number of the attempt that starts now, how the attempt before it was compiled); (0, None) for the first.

    Raises ConfigError if the run in the folder has ended or has trained with another config, or if its `run.json` is
    unusable.
    """
    try:
        info = read_start(folder)
    except FileNotFoundError:
        return 0, None
    except RecordError as error:
        raise ConfigError(f"{error}; remove the run's folder to train it from the start") from None
    if ended_as(folder) not in (None, "failed"):
        raise ConfigError(f"{folder}: holds a run that has ended; choose another folder or remove it")
    here, usual = config.model_dump(mode="json"), TrainConfig().model_dump(mode="json")
    theirs = usual | info["config"]  # a field that an older version did not know has its default
    changed = sorted(key for key, value in here.items() if theirs[key] != value)
    if changed and _has_trained(folder):
        raise ConfigError(f"{folder}: holds a run with another config ({', '.join(changed)}); choose another folder")
    compiled = info.get("compiled")
    return info.get("attempt", 0) + 1, compiled if compiled in get_args(How) else None


def parent_compiled(config: TrainConfig) -> How | None:
    """How the parent of a branch was compiled, which the branch repeats: compiled losses differ in the last bits."""
    if config.branch_from is None:
        return None
    compiled = read_start(Folder.at(config.branch_from["run"])).get("compiled")
    return compiled if compiled in get_args(How) else None


def earlier_attempts(folder: Folder) -> list[dict[str, Any]]:
    """What each attempt so far held and for how long it trained, seconds; for `run.json` of the one that starts now.

    Steps that a later attempt trains again cost time twice, which the rows do not tell any more once they are replaced:
    so it is read before.  An attempt that recorded no step is left out.
    """
    info = read_start(folder)
    seconds = seconds_of_attempt(read_table(folder, "steps", ["elapsed_seconds"]), info.get("attempt", 0))
    last = {"attempt": info.get("attempt", 0), "resources": info.get("resources"), "seconds": seconds}
    return [*info.get("earlier", []), *([last] if seconds is not None else [])]


def another_start(folder: Folder, started: Mapping[str, Any]) -> str | None:
    """One line that names the difference if the folder's run began with other weights or data, else None.

    started: the contents of `run.json` for the present start.  Continuing would join two runs into one curve; one that
    failed before its first step, as a branch does whose parent's data are gone, has no curve.
    """
    if not _has_trained(folder):
        return None
    difference = other_beginning(read_start(folder), started)
    if difference is None:
        return None
    return (
        f"{folder}: holds a run that started with {difference}; restore its weights and data, or choose another folder"
    )


def _has_trained(folder: Folder) -> bool:
    """Whether a step of the folder's run was recorded."""
    return bool((folder / "steps").list())
