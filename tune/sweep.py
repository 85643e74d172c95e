"""One command: train every number format, catch the collapses, compare.

    python tune/sweep.py [--formats E4M3 E7M0 ...] [--dry-run] [--resume] ...

This file decides the order of events; planning knows no Ray, so wrong options and `--dry-run` answer at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

if not __package__:  # run as a script: this folder is on the path, the repository's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from altgrad.compare import comparison, comparison_table, write_comparison
from altgrad.outage import StorageRefused
from altgrad.results import list_runs
from altgrad.training.config import ConfigError
from tune.machine import Resources, share_out, this_machine
from tune.manifest import Sweep, check_new, check_same_plan, create_sweep, open_sweep
from tune.options import SweepError, SweepOptions, parse_options
from tune.plan import Plan, Trial, plan_sweep
from tune.tracking import REPORT, check_account

_MODEL_FIELDS = ("model", "n_layer", "n_head", "n_embd", "block_size")
_LOG_WIDTH = 200  # columns of tables in a log, where there is no terminal to ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that the command line describes; the process's exit code.

    0: every trial completed, collapsed or was stopped; 1: a trial failed; 2: it cannot start; 128 + n: signal n.
    """
    options = parse_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    try:
        with ExitStack() as stack:
            return _sweep(options, console, stack)
    except (SweepError, ConfigError) as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sweep.py: interrupted", file=sys.stderr)
        return 130


def _sweep(options: SweepOptions, console: Console, stack: ExitStack) -> int:
    stored = None
    if options.resume is not None:
        stored = open_sweep(options)
    else:
        check_new(options)
    if options.wandb == "online":
        check_account()
    machine = this_machine()
    if options.cluster is not None:
        from tune.cluster import connected_ray

        machine = stack.enter_context(connected_ray(options.cluster))
    if stored is not None and not options.planning():
        plan = Plan(stored.trials)
    else:
        plan = plan_sweep(options, machine)
        if stored is not None:
            check_same_plan(stored, plan.trials, options)
    trials = plan.trials if stored is None else tuple(stored.unfinished())
    resources = share_out(options, machine, trials)
    if options.dry_run:
        _show_plan(console, Plan(trials, plan.notes), resources)
        return 0
    _check_inputs(trials)
    sweep = create_sweep(options, plan) if stored is None else stored
    _show_plan(console, Plan(trials, plan.notes), resources)
    console.print(f"sweep {sweep.name} in {sweep.folder}", soft_wrap=True, markup=False, highlight=False)
    if trials and options.cluster is None:
        from tune.cluster import local_ray

        stack.enter_context(local_ray(machine))
    try:
        return _run(sweep, trials, options, resources, console)
    except StorageRefused as error:
        _say_how_to_go_on(f"{error}; what was written is kept", sweep, options, console)
        return 1


def _run(sweep: Sweep, trials: Sequence[Trial], options: SweepOptions, resources: Resources, console: Console) -> int:
    """Train what is to be trained, then say what came out."""
    if trials:
        from tune.execution import run_trials  # Ray and torch, seconds

        interrupted = run_trials(sweep, trials, options, resources, console)
        if interrupted is not None:
            _say_how_to_go_on(f"stopped by {interrupted.name}; everything is kept", sweep, options, console)
            return 128 + interrupted
    return _show_results(sweep, options, console)


def _say_how_to_go_on(what: str, sweep: Sweep, options: SweepOptions, console: Console) -> None:
    for line in (f"{what}.  Go on with:", f"  {options.resume_command(sweep.name)}"):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _check_inputs(trials: Sequence[Trial]) -> None:
    """Refuse models and texts that cannot be trained on, before anything is created.  Raises ConfigError."""
    from altgrad.training.data import TextBatches, load_corpus

    checked: set[str] = set()
    for config in (trial.config for trial in trials):
        key = config.model_dump_json(include={*_MODEL_FIELDS, "data", "validation_fraction"})
        if key not in checked:
            checked.add(key)
            TextBatches(load_corpus(config), config, config.shape.block_size)


def _show_plan(console: Console, plan: Plan, resources: Resources) -> None:
    """The trials in the order in which they start, and what each gets."""
    if not plan.trials:
        console.print("nothing left to train: every run has ended")
        return
    table = Table(title=f"{len(plan.trials)} trials")
    for head in ("Trial", "Format", "Weights at rest", "Scaling", "Intervention", "Steps", "Learning rate", "Model"):
        table.add_column(head, no_wrap=True)
    for trial in plan.trials:
        config = trial.config
        at_rest = "FP32 master" if config.master_weights else f"on the grid, {config.update_rounding}"
        rate = f"{config.learning_rate:g}"
        words = (trial.run, config.format, at_rest, config.scaling, trial.intervention, str(config.max_steps), rate)
        table.add_row(*words, config.model)
    console.print(table)
    for note in (*plan.notes, resources.sentence()):
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def _show_results(sweep: Sweep, options: SweepOptions, console: Console) -> int:
    """The comparison, on the terminal and in the sweep's folder, and where to read on; the exit code."""
    folder = sweep.folder.patient()
    runs, broken = list_runs(folder)
    rows = comparison(runs)
    write_comparison(folder, rows)
    console.print(comparison_table(rows))
    lines = [f"results: {sweep.folder} (comparison.md, comparison.csv)"]
    lines += [f"failure report: {run.folder / REPORT}" for run in runs if run.folder.has(REPORT)]
    failed = {run.name: run.end["summary"]["error"] for run in runs if run.end and run.status == "failed"}
    lines += [f"failed: {name}: {reason}" for name, reason in failed.items()]
    lines += [f"cannot be read: {name}: {reason}" for name, reason in broken.items()]
    unfinished = [trial.run for trial in sweep.unfinished()]
    lines += [f"not finished: {name}" for name in unfinished if name not in failed]
    if unfinished:
        lines.append(f"try again: {options.resume_command(sweep.name)}")
    lines.append(f"dashboard: streamlit run dashboard -- {shlex.quote(options.results)}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 1 if unfinished or broken else 0


if __name__ == "__main__":
    sys.exit(main())
