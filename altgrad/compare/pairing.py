"""Which runs belong together: the baseline of a run, the seeds of a group, the settings that differ.

A gap in loss means something only between runs that differ in nothing but how numbers are rounded and rescued.
The config fields are therefore sorted into those two kinds, into fields that cannot change what is learned, and
the rest, which must agree.  A field added to the config later falls under the rest: it separates runs until
somebody decides otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from altgrad.formats import BASELINE_FORMAT
from altgrad.results import Run
from altgrad.training.config import INTERVENTIONS, TrainConfig

T = TypeVar("T")

DEFAULTS: Mapping[str, Any] = {name: field.get_default() for name, field in TrainConfig.model_fields.items()}

SITE_FORMATS = ("weight_format", "activation_format", "gradient_format")
NUMERICS = frozenset(
    {"format", *SITE_FORMATS, "layer_formats", "rounding", "overflow", "scaling", "scale_granularity"}
    | {"scale_power_of_two", "amax_history", "amax_factor", "master_weights", "update_rounding"}
    | {"gemm_dtype", "native_fp8"}
)
RESCUE = frozenset(
    name for name in DEFAULTS if name.startswith(("partition_clip_", "emergency_shift_")) or name.startswith("enable_")
)
MEASURING = frozenset(
    {"eval_interval", "diagnostic_interval", "log_stiffness", "log_grid_alignment", "log_ulp", "use_shadow"}
    | {"stop_on_collapse", "non_finite_patience", "diverged_margin", "diverged_patience", "never_learned_fraction"}
    | {"never_learned_margin", "stalled_displacement", "stalled_slope", "stalled_windows", "rank_collapse_ratio"}
    | {"gap_limit", "gap_patience"}
)
RUNNING = frozenset({"device", "threads", "compile", "cuda_graphs", "checkpoint_interval", "default_sweep"})

# What an intervention replaces where it makes a difference: `master` rescues a run that had no master weights.
_REPLACED: Mapping[str, Any] = {"master_weights": False, "update_rounding": "nearest", "scaling": "none"}
_WORDS: Mapping[tuple[str, Any], str] = {
    ("master_weights", False): "stored",
    ("scaling", "none"): "unscaled",
    ("update_rounding", "stochastic"): "stochastic update",
    ("rounding", "stochastic"): "stochastic GEMM",
}


@dataclass(frozen=True)
class Settings:
    """A run's config and intervention, seen as what must agree, what may differ and what is shown."""

    config: Mapping[str, Any]
    intervention: str

    @cached_property
    def group(self) -> str:
        """Equal for runs that differ in nothing but the seed (and in where and with how many threads they ran)."""
        return self._text(RUNNING | {"seed"}) + self.intervention

    @cached_property
    def pair(self) -> str:
        """Equal for a run and its baseline: same data, model, optimizer settings and seed."""
        return self._text(NUMERICS | RESCUE | MEASURING | RUNNING)

    @property
    def is_baseline(self) -> bool:
        """BF16 at every site, with master weights."""
        sites = all(self.config[site] in (None, BASELINE_FORMAT) for site in SITE_FORMATS)
        plain = self.config["format"] == BASELINE_FORMAT and sites and not self.config["layer_formats"]
        return plain and self.config["master_weights"]

    @cached_property
    def variant(self) -> str:
        """How the numbers were treated beside the format, before any intervention; "" where by default.

        For example `stored` (no master weights), `unscaled`, `gradient E5M2`.
        """
        replaced = {
            field: _REPLACED[field]
            for part in self.intervention.split("+")
            for field in INTERVENTIONS.get(part, {})
            if field in _REPLACED
        }
        config = {**self.config, **replaced}
        different = [name for name in DEFAULTS if name in NUMERICS - {"format"} and config[name] != DEFAULTS[name]]
        return ", ".join(_describe(name, config[name]) for name in different)

    def _text(self, without: frozenset[str]) -> str:
        return json.dumps({name: self.config[name] for name in sorted(self.config.keys() - without)}, default=str)


def settings_of(run: Run) -> Settings:
    """A run's settings; a field that its config lacks (written by an older version) has its default."""
    return Settings({**DEFAULTS, **run.config}, str(run.info.get("intervention") or "none"))


def baseline_of(runs: Iterable[Run]) -> dict[str, Run]:
    """For each `Settings.pair` the BF16 run to compare with: without intervention before with, then by name."""
    return choose_baselines((settings_of(run), run.name, run) for run in runs)


def choose_baselines(candidates: Iterable[tuple[Settings, str, T]]) -> dict[str, T]:
    """`baseline_of` for whatever stands for a run: (settings, run name, it)."""
    chosen: dict[str, T] = {}
    for settings, _, candidate in sorted(candidates, key=lambda item: (item[0].intervention != "none", item[1])):
        if settings.is_baseline:
            chosen.setdefault(settings.pair, candidate)
    return chosen


def config_difference(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The fields in which the runs' configs differ -> run name -> value; a run that lacks the field is left out."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = {name: {run.name: run.config[name] for run in runs if name in run.config} for name in names}
    return {
        name: by_run
        for name, by_run in values.items()
        if len(by_run) < len(runs) or len({json.dumps(value, sort_keys=True) for value in by_run.values()}) > 1
    }


def _describe(name: str, value: Any) -> str:
    try:
        return _WORDS[name, value]
    except (KeyError, TypeError):  # TypeError: layer_formats is a dict
        short = name.removesuffix("_format") if name in SITE_FORMATS else name
        text = json.dumps(value) if isinstance(value, dict | bool) else str(value)
        return f"{short} {text}"
