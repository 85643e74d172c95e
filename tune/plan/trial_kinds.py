"""Which trials are alike: to a compiler, and to a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from altgrad.config.train_config import TrainConfig
from tune.plan.trial import Trial

# What decides which graph a trial compiles; formats, seeds and learning rates are data to it.
_COMPILED_FIELDS = {
    *("model", "n_layer", "n_head", "n_embd", "block_size", "tied_head", "batch_size", "layer_formats"),
    *("rounding", "scaling", "scale_granularity", "scale_power_of_two", "amax_factor"),
    *("gemm_dtype", "native_fp8", "compile", "cuda_graphs"),
}
# What does not change how long a step takes: intervals are counted, not timed.
_TIMELESS_FIELDS = {
    *("format", "weight_format", "activation_format", "gradient_format", "overflow", "seed", "default_sweep"),
    *("learning_rate", "schedule", "min_learning_rate_ratio", "warmup_steps", "weight_decay", "beta1", "beta2"),
    *("adam_epsilon", "gradient_clip", "eval_interval", "diagnostic_interval", "checkpoint_interval"),
    *("stop_on_collapse", "non_finite_patience", "diverged_margin", "diverged_patience", "never_learned_fraction"),
    *("never_learned_margin", "stalled_displacement", "stalled_slope", "stalled_windows", "rank_collapse_ratio"),
    *("gap_limit", "gap_patience"),
}


def runs_alike(trials: Sequence[Trial], processes: int) -> list[int]:
    """For each trial how many of its kind, as far as a compiler sees, one of the sweep's processes will run."""
    kinds = [trial.config.model_dump_json(include=_COMPILED_FIELDS) for trial in trials]
    counts = Counter(kinds)
    return [max(1, counts[kind] // processes) for kind in kinds]


def timed_kind(config: TrainConfig) -> str:
    """Equal for trials whose steps take equally long; whether `compile: auto` compiles depends on their number too."""
    timeless = _TIMELESS_FIELDS if config.compile == "auto" else _TIMELESS_FIELDS | {"max_steps"}
    return config.model_dump_json(exclude=timeless)
