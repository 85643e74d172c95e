"""Groups trials that share a compiled graph, or whose steps take equally long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from altgrad.config.train_config import TrainConfig
from tune.plan.trial import Trial

_COMPILED_FIELDS = set(TrainConfig.where(lambda field: field.in_graph))  # formats, seeds and rates are data to a graph
_TIMELESS_FIELDS = set(TrainConfig.where(lambda field: not field.timed))  # intervals are counted, not timed


def runs_alike(trials: Sequence[Trial], processes: int) -> list[int]:
    """For each trial, how many trials with the same compiled graph each of the sweep's processes will run on average.

    10 trials of one kind on 4 processes: 2 each.
    """
    kinds = [trial.config.model_dump_json(include=_COMPILED_FIELDS) for trial in trials]
    counts = Counter(kinds)
    return [max(1, counts[kind] // processes) for kind in kinds]


def timed_kind(config: TrainConfig) -> str:
    """A key that is equal for trials whose steps take equally long.

    It contains `max_steps` for `compile: auto`, which compiles only runs that are long enough.
    """
    timeless = _TIMELESS_FIELDS if config.compile == "auto" else _TIMELESS_FIELDS | {"max_steps"}
    return config.model_dump_json(exclude=timeless)
