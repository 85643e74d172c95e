"""What an earlier attempt at a run left in its folder."""

from __future__ import annotations

from typing import get_args

from altgrad.results import RecordError, ended_as, read_start
from altgrad.storage import Folder
from altgrad.training.config import ConfigError, TrainConfig
from altgrad.training.payoff import How


def next_attempt(folder: Folder, config: TrainConfig) -> tuple[int, How | None]:
    """Number of the attempt that starts now, and how the one before it was compiled (None where there was none).

    Raises ConfigError for the folder of a run that has ended, has another config or whose `run.json` cannot be used.
    """
    try:
        info = read_start(folder)
    except FileNotFoundError:
        return 0, None
    except RecordError as error:
        raise ConfigError(f"{error}; remove the run's folder to train it from the start") from None
    if ended_as(folder) not in (None, "failed"):
        raise ConfigError(f"{folder}: holds a run that has ended; choose another folder or remove it")
    here = config.model_dump(mode="json")
    changed = sorted(key for key, value in here.items() if info["config"].get(key) != value)
    if changed:
        raise ConfigError(f"{folder}: holds a run with another config ({', '.join(changed)}); choose another folder")
    compiled = info.get("compiled")
    return info.get("attempt", 0) + 1, compiled if compiled in get_args(How) else None
