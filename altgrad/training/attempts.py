"""What an earlier attempt at a run left in its folder."""

from __future__ import annotations

from altgrad.storage import Folder
from altgrad.training.config import ConfigError, TrainConfig
from altgrad.training.payoff import How


def next_attempt(folder: Folder, config: TrainConfig) -> tuple[int, How | None]:
    """Number of the attempt that starts now, and how the one before it was compiled (None where there was none).

    Raises ConfigError for the folder of a run that has ended or has another config.
    """
    if not folder.has("run.json"):
        return 0, None
    if folder.has("end.json") and folder.read_json("end.json")["status"] != "failed":
        raise ConfigError(f"{folder}: holds a run that has ended; choose another folder or remove it")
    info = folder.read_json("run.json")
    here = config.model_dump(mode="json")
    changed = sorted(key for key, value in here.items() if info["config"].get(key) != value)
    if changed:
        raise ConfigError(f"{folder}: holds a run with another config ({', '.join(changed)}); choose another folder")
    return int(info["attempt"]) + 1, info.get("compiled")
