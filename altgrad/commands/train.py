"""`altgrad train`: trains one config without Ray."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from rich.console import Console

from altgrad.branch import with_parent
from altgrad.commands.known_folder import expect
from altgrad.commands.option_parser import (
    FROM_HELP,
    KEEP_HELP,
    TASK_ARGUMENT_HELP,
    TASK_HELP,
    Commands,
    examples,
    location,
    path,
)
from altgrad.config.run_origin import Kept
from altgrad.config.shipped_configs import config_file
from altgrad.config.train_config import TrainConfig, check_fields, load_config
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import say, unstoppable_output
from altgrad.text.yaml_text import NotYaml, assignments


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    train = commands.add_parser(
        "train",
        help="train one config without Ray",
        description="Train one config in this process, into a folder that holds its losses, diagnostics, "
        "checkpoints and, if it collapses, a report that says why.",
        epilog=examples(
            "train e4m3_uniform --out results/e4m3",
            "train my.yaml --out results/longer --set max_steps=2000 seed=7",
        ),
    )
    train.add_argument("config", type=path, help="YAML file, or a shipped one by name: e7m0_uniform")
    train.add_argument("--task", metavar="NAME", help=TASK_HELP)
    train.add_argument(
        "--task-arg", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=TASK_ARGUMENT_HELP
    )
    add_run_options(train, "run")
    train.add_argument("--from", dest="start_from", metavar="WEIGHTS", help=FROM_HELP)
    train.add_argument("--keep", nargs="+", action="extend", choices=get_args(Kept), help=KEEP_HELP)
    train.set_defaults(command=_train)


def add_run_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that every command has which trains one run; `what` it trains, in a word."""
    parser.add_argument(
        "--out",
        type=location,
        required=True,
        metavar="DIR",
        help=f"results folder of the {what}; an unfinished {what} in it is resumed",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config fields (repeatable)"
    )
    parser.add_argument(
        "--baseline", type=location, metavar="RUN_DIR", help=f"finished BF16 {what} to measure the gap against"
    )


def _train(options: argparse.Namespace) -> int:
    with unstoppable_output():  # a closed pipe or terminal does not end the run
        return _trained(options)


def _trained(options: argparse.Namespace) -> int:
    fields = settings_of_words(options.set) | _task(options.task, options.task_arg)
    if options.start_from is not None:
        fields["start_from"] = options.start_from
    if options.keep is not None:
        fields["start_keeps"] = options.keep
    config = with_parent(load_config(config_file(options.config), **fields))
    return train(config, Folder.at(options.out), options.baseline)


def train(config: TrainConfig, folder: Folder, baseline_run: str | None) -> int:
    """Train a config into a folder, with its progress on the terminal; returns the exit code."""
    from altgrad.experiment.allocator import keep_freed_memory
    from altgrad.experiment.runner import FormatExperimentRunner
    from altgrad.experiment.training_progress import (  # torch and the runner only once the input is known to be good
        TrainingProgress,
        without_hangups,
    )
    from altgrad.training.task.found_task import find_task
    from altgrad.training.task.unread_fields import check_all_read

    keep_freed_memory()
    console = Console()
    if folder.has("sweep.json"):
        raise ValueError(f"{folder}: holds a sweep; give the run a folder of its own")
    baseline = _finished_baseline(Folder.at(baseline_run), config) if baseline_run else {}
    batches = find_task(config).batches(config)
    check_all_read(config)
    if batches.source is not None:
        say(console, batches.source.sentence())
    with without_hangups(), TrainingProgress(console, config.max_steps) as progress:
        runner = FormatExperimentRunner(
            config,
            folder,
            run=folder.name,
            report=progress.report,
            announce=progress.announce,
            batches=batches,
            **baseline,
        )
        try:
            result = runner.run()
        except KeyboardInterrupt:
            say(console, f"stopped; the same command continues from the last checkpoint in {folder}")
            return 130
    say(console, progress.summary(result))
    return 0


def settings_of_words(pairs: Sequence[str]) -> dict[str, Any]:
    """The fields given by `--set`.  Raises ValueError, whose message begins with `--set`."""
    try:
        fields = assignments(pairs)
    except NotYaml as error:
        raise NotYaml(f"--set: {error}") from error
    check_fields(fields, source="--set")
    return fields


def _task(name: str | None, pairs: Sequence[str]) -> dict[str, Any]:
    """The fields that `--task` and `--task-arg` set.  Raises ValueError for a word that is no assignment."""
    try:
        arguments = assignments(pairs)
    except NotYaml as error:
        raise NotYaml(f"--task-arg: {error}") from error
    fields = {} if name is None else {"task": name}
    return fields | ({"task_args": arguments} if arguments else {})


def _finished_baseline(folder: Folder, config: TrainConfig) -> dict[str, Any]:
    """The runner's arguments for `--baseline`.  Raises ValueError where the run is no baseline of the config."""
    from altgrad.compare import Settings, settings_of
    from altgrad.results import read_run
    from altgrad.results.reading.ancestors import losses_by_step

    expect(folder, "run.json")
    run = read_run(folder)
    theirs = settings_of(run)
    wanted = "give a BF16 run that has completed, of the same model, data, seed and schedule"
    if run.status != "completed":
        raise ValueError(f"--baseline {folder}: its status is {run.status}; {wanted}")
    if not theirs.is_baseline:
        raise ValueError(f"--baseline {folder}: a run in {theirs.config['format']}, or with other rescues; {wanted}")
    if theirs.pair != Settings(config.model_dump(mode="json"), "none").pair:
        raise ValueError(f"--baseline {folder}: a run of another model, data, seed or schedule; {wanted}")
    return {"baseline": losses_by_step(folder), "baseline_start": run.info}
