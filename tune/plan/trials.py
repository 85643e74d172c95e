"""Derives the trials of a sweep from its options: configs, names and order.

Neither Ray nor torch is imported, so that `--dry-run` answers at once and a wrong option is refused before anything is
created.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from altgrad.branch.checkpoints import settled
from altgrad.compare.pairing import NUMERICS, RESCUE
from altgrad.config.interventions import intervention_fields
from altgrad.config.published import in_format, published
from altgrad.config.shipped_configs import CONFIGS, config_file, near_config
from altgrad.config.train_config import (
    BUILT_IN_TASK,
    ConfigError,
    TrainConfig,
    check_fields,
    load_config,
    make_config,
)
from altgrad.formats import BASELINE_FORMAT, find_format
from altgrad.text.error_hints import cut, shown, shown_path
from tune.plan.branches import branched
from tune.plan.options import SweepError, SweepOptions
from tune.plan.resources.machine import Machine
from tune.plan.resources.placement import work
from tune.plan.trial import SweepPlan, Trial

_MOST_TRIALS = 10_000  # a larger number is taken as a typing error; planning it would take hours
TEMPLATE = "bf16_baseline.yaml"  # the config that --recipes and --formats alter
_NUMERIC_DEFAULTS = TrainConfig(format=BASELINE_FORMAT).model_dump(include=set(NUMERICS | RESCUE))


def plan_sweep(options: SweepOptions, machine: Machine) -> SweepPlan:
    """All trials that the options ask for.  Raises SweepError or ConfigError."""
    notes: list[str] = []
    named = branched(_sources(options, notes), options, _overrides(options))
    sources = _with_model(list(named), options, machine, notes)
    asked = (
        len(sources)
        * (options.most_seeds or options.first_seeds)
        * len(options.rates(1.0))
        * len(options.interventions or "1")
    )
    if asked > _MOST_TRIALS:
        raise SweepError(
            f"{asked} trials (configs x seeds x rates x interventions); a sweep has at most {_MOST_TRIALS}"
        )
    trials: list[Trial] = []
    for name, config in sources:
        for intervention in options.interventions or ("none",):
            trials += _variants(name, config, intervention, options)
    trials = _distinct(trials, notes)
    if not options.no_baseline:
        trials = _with_baselines(trials)
    # The longest first, so that no core is idle at the end; baselines before all, since the others are judged by them.
    trials.sort(key=lambda trial: (not trial.is_baseline, -work(trial.config), trial.may_end_early))
    return SweepPlan(tuple(_paired(_uniquely_named(trials))), tuple(notes))


def _sources(options: SweepOptions, notes: list[str]) -> Iterator[tuple[str, TrainConfig]]:
    """Name and config of each file, or of each recipe and format made from the templates; overrides applied."""
    overrides = _overrides(options)
    files = _config_files(options)
    if options.recipes is not None:
        yield from _from_recipes(options.recipes, options.formats, files, overrides)
        return
    if options.formats is None:
        load = _loaded if options.configs is not None else _of_default_sweep
        wanted = [(_safe(file.stem), config) for file in files if (config := load(file, overrides, notes))]
        if not wanted:
            raise SweepError(f"--configs: no config of the default sweep in {CONFIGS}")
        yield from wanted
        return
    for fmt in options.formats:
        name = _known_format(fmt)
        for file in files:
            config = load_config(file, **(overrides | {"format": name}))
            yield name.lower() if len(files) == 1 else f"{name.lower()}-{_safe(file.stem)}", config


def _loaded(file: Path, overrides: dict[str, Any], notes: list[str]) -> TrainConfig:
    return load_config(file, **overrides)


def _of_default_sweep(file: Path, overrides: dict[str, Any], notes: list[str]) -> TrainConfig | None:
    """A config with the overrides; None if it is not part of the default sweep.

    A published recipe that an override contradicts is left out with a note, because it was not requested by name.
    """
    plain = load_config(file)
    if not plain.default_sweep and "default_sweep" not in overrides:
        return None
    try:
        config = load_config(file, **overrides)
    except ConfigError as error:
        if plain.recipe is None:
            raise
        notes.append(f"{file.stem} left out: {str(error).removeprefix(f'{file}: ')}")
        return None
    return config if config.default_sweep else None


def _from_recipes(
    recipes: Sequence[str], formats: Sequence[str] | None, files: Sequence[Path], overrides: dict[str, Any]
) -> Iterator[tuple[str, TrainConfig]]:
    """One config per file and recipe, and per format if any is given; the recipe replaces the file's numeric fields."""
    for recipe in recipes:
        try:
            published(recipe)
        except ValueError as error:
            raise SweepError(f"--recipes: {error}") from error
        for file in files:
            unchanged = load_config(file).model_dump(exclude_unset=True, exclude=set(NUMERICS))
            suffix = "" if len(files) == 1 else f"-{_safe(file.stem)}"
            source = f"--recipes {recipe}"
            config = make_config(unchanged | {"recipe": recipe} | overrides, source)
            if formats is None:
                yield f"{recipe}{suffix}", config
            for fmt in map(_known_format, formats or ()):
                try:
                    fields = config.model_dump() | in_format(config, fmt)
                except ValueError as error:
                    raise SweepError(f"{source} --formats {fmt}: {error}") from error
                yield f"{recipe}-{fmt.lower()}{suffix}", make_config(fields, f"{source} --formats {fmt}")


def _known_format(name: str) -> str:
    """The format's registered spelling, for a name in any case.  Raises SweepError for an unknown one."""
    reason: ValueError | None = None
    for spelling in (name, name.upper(), name.lower()):
        try:
            return find_format(spelling).name
        except ValueError as error:
            reason = reason or error
    raise SweepError(f"--formats: {reason}")


def _overrides(options: SweepOptions) -> dict[str, Any]:
    """Config fields that apply to every trial.  Raises SweepError if two options set the same field."""
    settings = dict(options.settings or {})
    check_fields(settings, source="--set")  # before they get mixed up with a file's
    own: dict[str, tuple[str, Any]] = {
        "--model": ("model", options.model),
        "--max-steps": ("max_steps", options.max_steps),
    }
    own |= {"--data": ("data", options.data), "--task": ("task", options.task)}
    own["--from"] = ("start_from", _absolute_weights(options.start_from))
    own["--keep"] = ("start_keeps", None if options.start_keeps is None else list(options.start_keeps))
    own["--task-arg"] = ("task_args", _absolute_arguments(options.task_args))
    for option, (field, value) in own.items():
        if value is None:
            continue
        if field in settings:
            raise SweepError(f"{option} {cut(str(value))} and --set {field}={shown(settings[field])}: give one of them")
        settings[field] = value
    if "recipe" in settings and options.recipes is not None:
        raise SweepError("--recipes and --set recipe=...: give one of them")
    if "seed" in settings and options.first_seeds > 1:
        raise SweepError("--seeds and --set seed=...: give one of them")
    if "learning_rate" in settings and options.learning_rates is not None:
        raise SweepError("--lr and --set learning_rate=...: give one of them")
    return settings


def _config_files(options: SweepOptions) -> list[Path]:
    """The given files, and the YAML files in the given folders, without repetition."""
    if options.configs is None:
        paths = [CONFIGS / TEMPLATE] if options.formats or options.recipes else [CONFIGS]
    else:
        paths = [config_file(text) for text in options.configs]
    files: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, no exception for a name that is too long
            found = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml") and p.is_file())
            if not found:
                raise SweepError(f"--configs {shown_path(path)}: no .yaml file in this folder")
            files += found
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise SweepError(f"--configs {shown_path(path)}: no such file or folder{near_config(path)}")
    return list({file.resolve(): file for file in files}.values())


def automatic_model(machine: Machine) -> str:
    """The preset of configs that name none."""
    return "small" if machine.gpus else "tiny"


def _with_model(
    sources: Sequence[tuple[str, TrainConfig]], options: SweepOptions, machine: Machine, notes: list[str]
) -> list[tuple[str, TrainConfig]]:
    """The configs; those without a model, in file or options, get the preset that fits the machine."""
    chosen = automatic_model(machine)
    result = []
    for name, config in sources:
        fields = config.model_dump(exclude_unset=True)
        result.append((name, make_config({"model": chosen} | fields | _absolute(config.data), name)))
    if any("model" not in config.model_fields_set and config.task == BUILT_IN_TASK for _, config in sources):
        notes.append(f"model {chosen}: {machine.gpu_note}; --model chooses another")
    return result


def _absolute(data: str) -> dict[str, str]:
    """The data field with an absolute path, because trials run in other folders; empty for a built-in corpus."""
    path = os.path.abspath(os.path.expanduser(data))
    return {"data": path} if os.path.exists(path) or glob.glob(path) else {}


def _absolute_weights(source: str | None) -> str | None:
    """The weights to start from, with an absolute path, and the step of a run's newest checkpoint for `last`."""
    if source is None or "://" in source:
        return settled(source)
    whole = os.path.abspath(os.path.expanduser(source))
    return settled(whole if os.path.exists(whole) or os.path.exists(whole.rpartition("@")[0]) else source)


def _absolute_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The arguments of a task; texts that name an existing path (with a slash) become absolute, as `data` does."""
    if arguments is None:
        return None
    return {
        name: os.path.abspath(value) if isinstance(value, str) and "/" in value and os.path.exists(value) else value
        for name, value in arguments.items()
    }


def _variants(name: str, config: TrainConfig, intervention: str, options: SweepOptions) -> Iterator[Trial]:
    """A config's trials with one intervention: one per learning rate and seed.

    A baseline yields none with an intervention, which would change nothing in BF16.
    """
    fields = intervention_fields(intervention)
    if intervention != "none" and Trial(name, config).is_baseline:
        return
    for rate in options.rates(config.learning_rate):
        for seed in range(config.seed, config.seed + options.first_seeds):
            run = f"{name}-s{seed}" + (f"-lr{rate:g}" if options.learning_rates else "")
            if intervention != "none":
                run += f"+{intervention}"
            changes = fields | {"learning_rate": rate, "seed": seed}
            yield Trial(run, make_config(config.model_dump() | changes, source=run), intervention)


def _distinct(trials: Sequence[Trial], notes: list[str]) -> list[Trial]:
    """The trials without exact repetitions; a note names each trial that is left out."""
    kept: dict[str, Trial] = {}
    for trial in trials:
        first = kept.setdefault(trial.config.model_dump_json(exclude=_without_effect(trial.config)), trial)
        if first is not trial:
            notes.append(f"{trial.run} left out: it would repeat {first.run}{_why_alike(trial.config, first.config)}")
    return list(kept.values())


def _without_effect(config: TrainConfig) -> set[str]:
    """Fields of a config that a run with its other fields does not read."""
    return set(config.without_effect() | TrainConfig.of_kind("planning"))


def _why_alike(config: TrainConfig, first: TrainConfig) -> str:
    """The differing fields, none of which has an effect, in parentheses; "" if all are equal."""
    other = first.model_dump()
    differing = [name for name, value in config.model_dump().items() if other[name] != value]
    return f" ({', '.join(differing)} has no effect here)" if differing else ""


def _with_baselines(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, with an added BF16 run for each pair key without a baseline."""
    served = {trial.pair for trial in trials if trial.is_baseline}
    added: list[Trial] = []
    for trial in trials:
        if trial.pair not in served:
            served.add(trial.pair)
            rate = re.search(r"-lr[^+]*", trial.run)
            name = f"{Path(TEMPLATE).stem}-s{trial.config.seed}{rate[0] if rate else ''}"
            added.append(Trial(name, trial.config.altered(**_NUMERIC_DEFAULTS)))
    return [*added, *trials]


def completed_plan(trials: Sequence[Trial], added: Sequence[Trial]) -> list[Trial]:
    """The trials to add to a plan: `added`, with names of their own, the baselines that they lack, and paired.

    Baselines come first, since the others are judged by them.
    """
    whole = _with_baselines([*trials, *added])
    known = {id(trial) for trial in trials}
    new = [trial for trial in whole if id(trial) not in known]
    new.sort(key=lambda trial: not trial.is_baseline)
    return _paired(_uniquely_named([*trials, *new]))[len(trials) :]


def _uniquely_named(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with unique names: repeated names get the suffix -2, -3, ..."""
    taken = {trial.run for trial in trials}
    used: set[str] = set()
    result = []
    for trial in trials:
        name, count = trial.run, 1
        while name in used or (count > 1 and name in taken):
            count += 1
            name = f"{trial.run}-{count}"
        used.add(name)
        result.append(replace(trial, run=name))
    return result


def _paired(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, each with the run name of its baseline."""
    baselines: dict[str, str] = {}
    for trial in trials:
        if trial.is_baseline:
            baselines.setdefault(trial.pair, trial.run)
    return [trial if trial.is_baseline else replace(trial, baseline=baselines.get(trial.pair)) for trial in trials]


def _safe(name: str) -> str:
    """A file's stem as a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "config"
