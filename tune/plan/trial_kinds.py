"""Which trials are alike: to a compiler, and to a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from altgrad.config.train_config import TrainConfig
from tune.plan.trial import Trial

_COMPILED_FIELDS = set(TrainConfig.where(lambda field: field.in_graph))  # formats, seeds and rates are data to a graph
_TIMELESS_FIELDS = set(TrainConfig.where(lambda field: not field.timed))  # intervals are counted, not timed


def runs_alike(trials: Sequence[Trial], processes: int) -> list[int]:
    """For each trial how many of its kind, as far as a compiler sees, one of the sweep's processes will run."""
    kinds = [trial.config.model_dump_json(include=_COMPILED_FIELDS) for trial in trials]
    counts = Counter(kinds)
    return [max(1, counts[kind] // processes) for kind in kinds]


def timed_kind(config: TrainConfig) -> str:
    """Equal for trials whose steps take equally long; whether `compile: auto` compiles depends on their number too."""
    timeless = _TIMELESS_FIELDS if config.compile == "auto" else _TIMELESS_FIELDS | {"max_steps"}
    return config.model_dump_json(exclude=timeless)
