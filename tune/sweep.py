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

from altgrad.compare import comparison, comparison_table, write_comparison
from altgrad.hints import error_text
from altgrad.outage import StorageRefused
from altgrad.progress import compute_sentence
from altgrad.results import list_runs
from altgrad.training.config import ConfigError
from tune.machine import Machine, Resources, share_out, this_machine
from tune.manifest import Sweep, check_new, check_same_plan, create_sweep, open_sweep
from tune.options import SweepError, SweepOptions, parse_options
from tune.outlook import show_plan
from tune.plan import plan_sweep
from tune.probe import TimesStore, expected, measure
from tune.tracking import REPORT, check_account
from tune.trial import Plan, Trial

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
        print(f"sweep.py: error: {error_text(error)}", file=sys.stderr)
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
    if options.probe and options.cluster is not None:
        raise SweepError(f"--probe measures this machine, but the trials run on {options.cluster}; leave it out")
    if options.probe and options.workers_per_trial > 1:
        raise SweepError("--probe measures trials of one process; leave it or --workers-per-trial out")
    machine = this_machine()
    if options.cluster is not None:
        from tune.cluster import connected_ray

        machine = stack.enter_context(connected_ray(options.cluster))
    plan = _plan(options, stored, machine)
    resources = share_out(options, machine, plan.trials)
    if options.probe:
        measure(plan.trials, resources, machine.gpus, TimesStore(), console.print)
    times = None if options.cluster is not None else expected(plan.trials, resources, TimesStore())
    plan = plan.timed(times, resources.memory_sentence(machine, plan.trials))
    if options.dry_run:
        show_plan(console, plan, resources, elsewhere=options.cluster is not None)
        return 0
    for line in _check_inputs(plan.trials):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    sweep = create_sweep(options, plan) if stored is None else stored
    show_plan(console, plan, resources, elsewhere=options.cluster is not None)
    console.print(f"sweep {sweep.name} in {sweep.folder}", soft_wrap=True, markup=False, highlight=False)
    if plan.trials and options.cluster is None:
        from tune.cluster import local_ray

        stack.enter_context(local_ray(machine))
    try:
        return _run(sweep, plan.trials, options, resources, console)
    except StorageRefused as error:
        _say_how_to_go_on(f"{error}; what was written is kept", sweep, options, console)
        return 1


def _plan(options: SweepOptions, stored: Sweep | None, machine: Machine) -> Plan:
    """What is to be trained: all that the options ask for, or what a stored sweep still lacks."""
    if stored is None:
        return plan_sweep(options, machine)
    notes: tuple[str, ...] = ()
    if options.planning():
        asked = plan_sweep(options, machine)
        check_same_plan(stored, asked.trials, options)
        notes = asked.notes
    return Plan(tuple(stored.unfinished()), notes)


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


def _check_inputs(trials: Sequence[Trial]) -> list[str]:
    """Refuse models and texts that cannot be trained on, before anything is created.  Raises ConfigError.

    A sentence for each text about what was taken from it.
    """
    from altgrad.training.data import TextBatches, load_corpus

    checked: dict[str, str] = {}
    for config in (trial.config for trial in trials):
        key = config.model_dump_json(include={*_MODEL_FIELDS, "data", "token_dtype", "validation_fraction"})
        if key not in checked:
            batches = TextBatches(load_corpus(config), config, config.shape.block_size)
            checked[key] = batches.source.sentence()
    return list(dict.fromkeys(checked.values()))


def _show_results(sweep: Sweep, options: SweepOptions, console: Console) -> int:
    """The comparison, on the terminal and in the sweep's folder, and where to read on; the exit code."""
    folder = sweep.folder.patient()
    runs, broken = list_runs(folder)
    rows = comparison(runs)
    compute = compute_sentence(rows)
    write_comparison(folder, rows, compute)
    console.print(comparison_table(rows))
    lines = [] if compute is None else [compute]
    lines += [f"results: {sweep.folder} (comparison.md, comparison.csv)"]
    lines += [f"failure report: {run.folder / REPORT}" for run in runs if run.folder.has(REPORT)]
    ends = {run.name: run.end for run in runs if run.end is not None}
    failed = {name: end["summary"].get("error") or "unknown" for name, end in ends.items() if end["status"] == "failed"}
    lines += [f"failed: {name}: {reason}" for name, reason in failed.items()]
    lines += [f"cannot be read: {name}: {reason}" for name, reason in broken.items()]
    lines += [f"damaged: {sentence}" for run in runs for sentence in run.damage_sentences()]
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
