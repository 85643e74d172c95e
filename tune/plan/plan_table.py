"""Prints the plan: the trials in the order in which they start, their waves, and the expected time."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from altgrad.config.sizes.memory import bytes_per_parameter
from altgrad.config.train_config import BUILT_IN_TASK, TrainConfig
from altgrad.metrics import METRICS
from altgrad.text.fitted_table import FittedColumn, FittedTable
from altgrad.text.number_text import duration
from altgrad.text.terminal_output import tell
from tune.plan.resources.machine import Resources
from tune.plan.resources.placement import place, work
from tune.plan.trial import SweepPlan, Trial


def show_plan(console: Console, plan: SweepPlan, resources: Resources, elsewhere: bool = False) -> None:
    """Print the plan, with times if they are known; `elsewhere`: the trials run on a cluster, not on this machine.

    What is the same for all trials is said below the table instead of in a column.
    """
    if not plan.trials:
        console.print("nothing left to train: every run has ended")
        return
    if plan.expected is not None:
        placement = place(plan.expected.seconds, resources.concurrent, plan.expected.start)
    else:
        placement = place([work(trial.config) for trial in plan.trials], resources.concurrent)
    placed = placement.trials
    facts, numbers = _facts(plan.trials), _numbers(plan.trials)
    same = [f"{head.lower()} {texts[0]}" for head, texts in (facts | numbers).items() if {*texts} == {texts[0]} != {""}]
    columns = [
        FittedColumn("Trial", [trial.run for trial in plan.trials]),
        FittedColumn("Wave", [str(one.wave + 1) for one in placed], is_number=True),
        *(FittedColumn(head, texts) for head, texts in facts.items() if len(set(texts)) > 1),
        *(FittedColumn(head, texts, is_number=True) for head, texts in numbers.items() if len(set(texts)) > 1),
    ]
    if plan.expected is not None:
        starts, takes = [one.start for one in placed], [one.end - one.start for one in placed]
        columns[2:2] = [
            FittedColumn(head, [duration(round(time)) for time in times], is_number=True)
            for head, times in (("Starts at", starts), ("Takes", takes))
        ]
    gpus = [] if elsewhere else [_gpu_range(resources.gpus_of(one.slot)) for one in placed]
    if len(set(gpus)) > 1:
        columns.insert(2, FittedColumn("GPU", gpus, is_number=True))
    title = f"{len(plan.trials)} trial{'s' * (len(plan.trials) != 1)}"
    console.print(FittedTable(columns, title, [f"all of them: {', '.join(same)}"] if same else []))
    waves = f"{placement.waves} wave" + "s" * (placement.waves != 1)
    if plan.expected is not None:
        outlook = placement.sentence()
    elif elsewhere:
        outlook = f"{waves}; how long they take on the cluster is not known"
    else:
        outlook = f"{waves}; how long they take was not measured here: --dry-run --probe does, for this and later plans"
    for note in (*plan.notes, resources.sentence(), outlook):
        tell(console, note)


def _facts(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Heading -> a text for each trial."""
    configs = [trial.config for trial in trials]
    return {
        "Format": [c.format if c.recipe is None else f"{c.format} ({c.recipe})" for c in configs],
        "Weights at rest": [
            "FP32 master" if c.master_weights else f"on the grid, {c.update_rounding}" for c in configs
        ],
        "Intervention": [trial.intervention for trial in trials],
        "Scaling": [config.scaling for config in configs],
        "Starts from": [_start(config) for config in configs],
        "Model": [config.model if config.task == BUILT_IN_TASK else config.task for config in configs],
    }


def _numbers(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Heading -> a number for each trial."""
    configs = [trial.config for trial in trials]
    return {
        "Steps": [str(config.max_steps) for config in configs],
        METRICS["learning_rate"].label: [f"{config.learning_rate:g}" for config in configs],
        "Bytes per parameter": [f"{bytes_per_parameter(config):.3g}" for config in configs],
    }


def _start(config: TrainConfig) -> str:
    """Where a trial begins that does not begin with weights of its own: `step 300 of results/trunk`; else ""."""
    if config.branch_from is not None:
        return f"step {config.branch_from['step']} of {config.branch_from['run']}"
    return config.start_from or ""


def _gpu_range(gpus: range) -> str:
    """`3`, or `2-3` for two; nothing for none."""
    return "-".join(str(end) for end in dict.fromkeys((gpus[0], gpus[-1]))) if gpus else ""
