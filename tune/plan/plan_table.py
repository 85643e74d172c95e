"""Prints the plan: the trials in the order in which they start, their waves, and the expected time."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from altgrad.config.sizes.memory import bytes_per_parameter
from altgrad.config.train_config import BUILT_IN_TASK
from altgrad.metrics import METRICS
from altgrad.text.number_text import duration
from altgrad.text.terminal_output import cell, say
from tune.plan.resources.machine import Resources
from tune.plan.resources.placement import place, work
from tune.plan.trial import SweepPlan

_HEADS = (
    "Trial",
    "Format",
    "Weights at rest",
    "Bytes/parameter",
    "Scaling",
    "Intervention",
    "Steps",
    METRICS["learning_rate"].label,
    "Model",
    "Wave",
)


def show_plan(console: Console, plan: SweepPlan, resources: Resources, elsewhere: bool = False) -> None:
    """Print the plan, with times if they are known; `elsewhere`: the trials run on a cluster, not on this machine."""
    if not plan.trials:
        console.print("nothing left to train: every run has ended")
        return
    timed = plan.expected is not None
    if plan.expected is not None:
        placement = place(plan.expected.seconds, resources.concurrent, plan.expected.start)
    else:
        placement = place([work(trial.config) for trial in plan.trials], resources.concurrent)
    table = Table(title=f"{len(plan.trials)} trials")
    for head in (*_HEADS, *(("Starts at", "Takes") if timed else ())):
        table.add_column(head, no_wrap=True)
    for trial, placed in zip(plan.trials, placement.trials, strict=True):
        config = trial.config
        at_rest = "FP32 master" if config.master_weights else f"on the grid, {config.update_rounding}"
        rate = f"{config.learning_rate:g}"
        fmt = config.format if config.recipe is None else f"{config.format} ({config.recipe})"
        size = f"{bytes_per_parameter(config):.3g}"
        words = (trial.run, fmt, at_rest, size, config.scaling, trial.intervention, str(config.max_steps), rate)
        times = (duration(round(placed.start)), duration(round(placed.end - placed.start))) if timed else ()
        model = config.model if config.task == BUILT_IN_TASK else config.task
        table.add_row(*map(cell, (*words, model, str(placed.wave + 1), *times)))
    console.print(table)
    waves = f"{placement.waves} wave" + "s" * (placement.waves != 1)
    if timed:
        outlook = placement.sentence()
    elif elsewhere:
        outlook = f"{waves}; how long they take on the cluster is not known"
    else:
        outlook = f"{waves}; how long they take was not measured here: --dry-run --probe does, for this and later plans"
    for note in (*plan.notes, resources.sentence(), outlook):
        say(console, note)
