"""Pairing of runs by their settings: the baseline of a run, the seeds of a group, the settings that differ.

A gap in loss is meaningful only between runs that differ in nothing but number formats and interventions.  Each config
field has a kind (see `field_traits`).  This module sorts the kinds: some are compared (formats, interventions), some
cannot change the losses (device, metrics), and all others must agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from altgrad.config.interventions import implied_fields
from altgrad.config.phases import phases_text
from altgrad.config.published import own_gemms, published_fields
from altgrad.config.recipe import GEMM_SITES
from altgrad.config.train_config import TrainConfig
from altgrad.formats import BASELINE_FORMAT
from altgrad.results import Run

DEFAULTS: Mapping[str, Any] = {name: field.get_default() for name, field in TrainConfig.model_fields.items()}

SITE_FORMATS = tuple(f"{site}_format" for site in GEMM_SITES)
NUMERICS = TrainConfig.of_kind("numeric")
RESCUE = TrainConfig.of_kind("rescue")
MEASURING = TrainConfig.of_kind("measuring", "judging")
RUNNING = TrainConfig.of_kind("running", "planning")
# Fields that a sweep varies to find the best training.  Runs that differ in them have different baselines, but the same
# task and the same number of steps.
OPTIMISATION = TrainConfig.of_kind("optimisation")
_SEED = TrainConfig.of_kind("seed")
_BESIDES_TASK = NUMERICS | RESCUE | MEASURING | RUNNING | OPTIMISATION | _SEED
# Interventions, without their limits.
_SWITCHES = TrainConfig.where(lambda field: field.kind == "rescue" and field.only_with is None)

# The value that an intervention changes: `master` is an intervention for runs without master weights.
_REPLACED: Mapping[str, Any] = {"master_weights": False, "update_rounding": "nearest", "scaling": "none"}
_WORDS: Mapping[tuple[str, Any], str] = {
    ("master_weights", False): "stored",
    ("master_weights", True): "master weights",
    ("scaling", "none"): "unscaled",
    ("update_rounding", "stochastic"): "stochastic update",
    ("update_rounding", "kahan"): "Kahan update",
    ("update_rounding", "eco"): "ECO update",
    ("update_rounding", "eco_stochastic"): "ECO update, stochastic",
    ("rounding", "stochastic"): "stochastic GEMM",
}
_SHORT: Mapping[str, str] = {"learning_rate": "lr", "max_steps": "steps"}
# Numeric fields that can change the losses of a run in BF16 with FP32 master weights, so a baseline must have their
# defaults.  The other numeric fields cannot: BF16 is never scaled, and with master weights nothing is written back.
_OF_BASELINE = TrainConfig.where(lambda field: field.kind == "numeric" and field.moves_baseline)


@dataclass(frozen=True)
class Settings:
    """A run's config and intervention, with the keys by which runs are grouped and paired, and the labels of a run."""

    config: Mapping[str, Any]
    intervention: str

    @cached_property
    def group(self) -> str:
        """Equal for runs that differ in nothing but the seed (and fields of kind "running", such as the device)."""
        return self._text(RUNNING | _SEED) + self.intervention

    @cached_property
    def pair(self) -> str:
        """Equal for a run and its baseline: same data, model, optimizer settings and seed."""
        return self._text(NUMERICS | RESCUE | MEASURING | RUNNING)

    @cached_property
    def pair_at_any_rate(self) -> str:
        """As `pair`, of any seed and learning rate."""
        return self._text(NUMERICS | RESCUE | MEASURING | RUNNING | _SEED | {"learning_rate"})

    @cached_property
    def task(self) -> str:
        """Equal for runs whose gaps may be compared with each other: same data, model, batch size and length."""
        return self._text(_BESIDES_TASK)

    @property
    def task_fields(self) -> frozenset[str]:
        """The names of the fields in `task`."""
        return frozenset(self.config) - _BESIDES_TASK

    @cached_property
    def is_baseline(self) -> bool:
        """Whether the run is a baseline: BF16 at every site, FP32 master weights, nearest rounding, no intervention.

        A field that cannot change the losses of BF16 may have any value (see `_OF_BASELINE`).
        """
        config = self.config
        sites = all(config[site] in (None, BASELINE_FORMAT) for site in SITE_FORMATS)
        plain = all(config[name] == DEFAULTS[name] for name in _OF_BASELINE)
        rescued = self.intervention != "none" or any(config[name] for name in _SWITCHES)
        return config["format"] == BASELINE_FORMAT and sites and plain and not rescued

    @cached_property
    def variant(self) -> str:
        """The numeric settings besides the format that are not at their default, without those of the intervention.

        For example `stored` (no master weights), `unscaled`, `gradient E5M2`; "" if all are at their default.  A
        published recipe is given by its name, followed by the settings of the run that differ from the recipe.
        """
        recipe = self.config["recipe"]
        theirs = published_fields(recipe)
        replaced = {
            field: theirs.get(field, _REPLACED[field])
            for field in implied_fields(self.intervention)
            if field in _REPLACED
        }
        config = {**self.config, **replaced}
        usual = {**DEFAULTS, **theirs, "recipe": recipe}
        different = [name for name in DEFAULTS if name in NUMERICS - {"format"} and config[name] != usual[name]]
        if "gemms" in different and recipe is not None:
            config["gemms"] = own_gemms(config["gemms"], usual["gemms"])
        said = [describe_field(name, config[name]) for name in different]
        return ", ".join(said if recipe is None else [recipe, *said])

    @cached_property
    def others(self) -> Mapping[str, Any]:
        """The fields that may distinguish groups besides format, variant and intervention: name -> value.

        A field that the intervention has set is given with its default: the intervention's name already implies it.
        """
        implied = implied_fields(self.intervention)
        return {
            name: DEFAULTS.get(name) if name in implied and value == implied[name] else value
            for name, value in self.config.items()
            if name not in NUMERICS | RUNNING | _SEED
        }

    def _text(self, without: frozenset[str]) -> str:
        return json.dumps({name: self.config[name] for name in sorted(self.config.keys() - without)}, default=str)


def settings_of(run: Run) -> Settings:
    """The settings of a run; a field that its config lacks, because an older version wrote it, has its default."""
    return Settings({**DEFAULTS, **run.config}, str(run.info.get("intervention") or "none"))


def config_difference(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Field in which the configs differ -> run name -> value; a run whose config lacks the field is left out."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = {name: {run.name: run.config[name] for run in runs if name in run.config} for name in names}
    return {
        name: by_run
        for name, by_run in values.items()
        if len(by_run) < len(runs) or len({json.dumps(value, sort_keys=True) for value in by_run.values()}) > 1
    }


def describe_field(name: str, value: Any) -> str:
    """A config field in a label: `stored`, `gradient E5M2`, `lr 3e-4`.  Different values have different texts."""
    if name == "phases" and value:
        return phases_text(value)
    try:
        return _WORDS[name, value]
    except (KeyError, TypeError):  # TypeError: layer_formats is a dict
        short = _SHORT.get(name, name.removesuffix("_format") if name in SITE_FORMATS else name)
        return f"{short} {_value_text(value)}"


def _value_text(value: Any) -> str:
    """The shortest text that gives a value exactly: `3e-4`, `0.25`, `true`."""
    if isinstance(value, float) and math.isfinite(value):
        text = f"{Decimal(repr(value)).normalize():e}" if value and not 0.01 <= abs(value) < 1e6 else repr(value)
        return text.removesuffix(".0").replace("e+", "e")
    return json.dumps(value, default=str) if isinstance(value, dict | list | bool) else str(value)
