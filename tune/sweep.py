"""One command: train every number format, catch the collapses, compare.

    python tune/sweep.py [--formats E4M3 E7M0 ...] [--dry-run] [--resume] ...

This file determines the order of events.  Planning imports no Ray, so that errors and `--dry-run` answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals

if not __package__:  # run as a script: this folder is on the path, the repository's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from altgrad.commands.extras import exit_without

    exit_without("sweep")

from rich.console import Console

from altgrad.commands.typed_command import dashboard_command, program_command
from altgrad.compare import comparison, planned_terms, shown_rows, write_comparison
from altgrad.config.train_config import ConfigError
from altgrad.results import list_runs
from altgrad.results.stop_request import stop_request
from altgrad.show.sweep_progress import compute_sentence
from altgrad.storage.patience import StorageRefused
from altgrad.text.error_hints import error_text
from altgrad.text.terminal_output import Outlet, harmless, say, tell, unstoppable_output
from tune.cluster.private_folders import private_folder, temporary_root
from tune.cluster.ray_watch import EXIT_CODE, RayFailed
from tune.plan.inputs import any_given, check_inputs
from tune.plan.more_seeds import MoreSeeds
from tune.plan.options import SweepError, SweepOptions, parse_options
from tune.plan.plan_table import show_plan
from tune.plan.resources.machine import Machine, Resources, Shares, share_out, this_machine
from tune.plan.sweep_record import PlannedSweep, check_new, check_same_plan, create_sweep, open_sweep
from tune.plan.trial import SweepPlan, Trial
from tune.plan.trials import plan_sweep
from tune.run.interrupts import Interrupted, Interrupts
from tune.timing.probe import TimesStore, expected, measure
from tune.watch.ending import Ending
from tune.watch.journal import Journal
from tune.watch.wandb_copy import REPORT, check_account, check_installed, chosen_mode

_LAST_WORDS_SECONDS = 5.0  # for the last lines of a sweep whose Ray has died
_LOG_WIDTH = 200  # columns of tables if the output is not a terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that the command line describes; return the exit code of the process.

    0: every trial completed, collapsed or was stopped; 1: a trial failed; 2: the sweep cannot start; 3: Ray did not
    start, or died; 128 + n: signal n.
    """
    journal = Journal()
    with unstoppable_output(journal.output_lost):
        options = parse_options(arguments)
        console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
        try:
            with ExitStack() as stack:
                code = _sweep(options, console, journal, stack)
        except (SweepError, ConfigError) as error:
            print(f"{program_command()}: error: {harmless(error_text(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{program_command()}: interrupted", file=sys.stderr)
            return 130
    if not journal.is_empty:
        journal.note(f"the sweep ended with exit code {code}")
    return code


def _sweep(options: SweepOptions, console: Console, journal: Journal, stack: ExitStack) -> int:
    stored = None
    if options.resume is not None:
        stored = open_sweep(options)
        if not options.dry_run:
            stored = stored.held(stack)
    else:
        check_new(options)
    check_installed(options.wandb)
    if chosen_mode(options.wandb, os.environ)[0] == "online":
        check_account()
    if options.probe and options.cluster is not None:
        raise SweepError(f"--probe measures this machine, but the trials run on {options.cluster}; leave it out")
    if options.probe and (options.workers_per_trial or 1) > 1:
        raise SweepError("--probe measures trials of one process; leave it or --workers-per-trial out")
    machine = this_machine()
    if options.cluster is not None:
        from tune.cluster.ray_session import connected_ray

        tasks = {trial.config.task for trial in stored.trials} if stored is not None else {options.task_name or ""}
        machine = stack.enter_context(connected_ray(options.cluster, tasks))
    plan = _plan(options, stored, machine)
    resources = _resources(options, machine, plan.trials, stored)
    if not options.dry_run or any_given(plan.trials):  # without torch a plan of what altgrad ships answers at once
        uses_gpus_here = bool(resources.gpus) and options.cluster is None
        for line in check_inputs(plan.trials, machine, uses_gpus_here=uses_gpus_here):
            tell(console, line)
    if options.probe:
        measure(plan.trials, resources, machine.gpus, TimesStore(), console.print)
    times = None if options.cluster is not None else expected(plan.trials, resources, TimesStore())
    plan = plan.timed(times, resources.memory_sentence(machine, plan.trials))
    if options.dry_run:
        show_plan(console, plan, resources, elsewhere=options.cluster is not None)
        return 0
    sweep = create_sweep(options, plan, resources).held(stack) if stored is None else stored
    show_plan(console, plan, resources, elsewhere=options.cluster is not None)
    say(console, f"sweep {sweep.name} in {sweep.folder}")
    return _Course(sweep, options, console, journal).run(plan.trials, resources, machine, stack)


@dataclass(frozen=True)
class _Course:
    """A sweep that has a folder; if it ends early, it prints the command that resumes it."""

    sweep: PlannedSweep
    options: SweepOptions
    console: Console
    journal: Journal

    def run(self, trials: Sequence[Trial], resources: Resources, machine: Machine, stack: ExitStack) -> int:
        """Train the trials and show the results; return the exit code."""
        self.journal.keep_in(self.sweep.folder.patient(0))
        interrupts = stack.enter_context(Interrupts())
        try:
            sweep, place = self.sweep, None
            if not trials:
                sweep, trials = self._with_more_seeds(sweep)
            while trials:
                place = place or self._place(machine, stack)
                self._train(sweep, trials, resources, place, interrupts)
                sweep, trials = self._with_more_seeds(sweep)
            code = _show_results(sweep, self.options, self.console)
            if self.options.explain:
                code = max(code, self._explain(machine, stack))
            return code
        except StorageRefused as error:
            self._say_how_to_go_on(f"{error}; all written results are kept")
            return 1
        except RayFailed as error:
            self._say_how_to_go_on(str(error))
            return EXIT_CODE
        except KeyboardInterrupt:  # not `Interrupted`: libraries convert that to a plain KeyboardInterrupt
            signal = interrupts.asked or Signals.SIGINT
            self._say_how_to_go_on(f"stopped by {signal.name}; everything is kept")
            return 128 + signal

    def _with_more_seeds(self, sweep: PlannedSweep) -> tuple[PlannedSweep, Sequence[Trial]]:
        """The sweep with a further round of seeds, and the trials of that round; none if all is decided or hopeless."""
        folder = sweep.folder.patient()
        if sweep.more_seeds is None or stop_request(folder) is not None:
            return sweep, ()
        rows = comparison(list_runs(folder)[0], planned_terms(folder, self.options.margin))
        added, said = sweep.more_seeds.next_round(sweep.trials, rows)
        for line in said:
            tell(self.console, line)
        return (sweep.extended(added), added) if added else (sweep, ())

    def _place(self, machine: Machine, stack: ExitStack) -> Path:
        """Start a private Ray unless there is a cluster; returns a private folder for Tune."""
        if self.options.cluster is not None:
            return stack.enter_context(private_folder(temporary_root()[0]))
        from tune.cluster.ray_session import local_ray

        return stack.enter_context(local_ray(machine, self._ray_died, self._tell))

    def _train(
        self,
        sweep: PlannedSweep,
        trials: Sequence[Trial],
        resources: Resources,
        place: Path,
        interrupts: Interrupts,
    ) -> None:
        """Train on a private Ray or on the cluster.  Raises Interrupted if a signal ended the training."""
        mode, notes = chosen_mode(self.options.wandb, os.environ)
        for note in notes:
            tell(self.console, note)
        from tune.run.execution import run_trials  # Ray and torch, seconds

        signal = run_trials(sweep, trials, self.options, resources, mode, self.console, place, interrupts, self._tell)
        if signal is not None:
            raise Interrupted(signal)

    def _explain(self, machine: Machine, stack: ExitStack) -> int:
        """Replay the collapses of the sweep; returns the exit code of `altgrad explain`."""
        from tune.explain import ExplainOptions, explain_runs

        collapsed = [run for run in list_runs(self.sweep.folder)[0] if run.verdict is not None]
        if not collapsed:
            say(self.console, "--explain: no run has collapsed")
            return 0
        return explain_runs(collapsed, ExplainOptions(), machine, self.console, stack)

    def _tell(self, what: str) -> None:
        self.journal.note(what)
        say(self.console, what)

    def _say_how_to_go_on(self, what: str) -> None:
        say(self.console, f"{what}.  Go on with:\n  {self.options.resume_command(self.sweep.name)}")

    def _ray_died(self, which: str) -> None:
        """Print the last lines of this process, which ends at once."""
        self.journal.note(f"{which}; the sweep ended with exit code {EXIT_CODE}")
        self.console.show_cursor(True)
        self._say_how_to_go_on(f"{which}; everything is kept")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Outlet):
                stream.drain(_LAST_WORDS_SECONDS)


def _plan(options: SweepOptions, stored: PlannedSweep | None, machine: Machine) -> SweepPlan:
    """The trials to train: those of the options, or the unfinished ones of a stored sweep."""
    if stored is None:
        rule, plan = MoreSeeds.of(options), plan_sweep(options, machine)
        return plan if rule is None else replace(plan, notes=(*plan.notes, rule.note(plan.trials, options)))
    notes: tuple[str, ...] = ()
    if options.planning():
        asked = plan_sweep(options, machine)
        check_same_plan(stored, asked.trials, options)
        notes = asked.notes
    change = None if stored.shares is None else stored.shares.note(options)
    return SweepPlan(tuple(stored.unfinished()), (*notes, change) if change else notes)


def _resources(
    options: SweepOptions, machine: Machine, trials: Sequence[Trial], stored: PlannedSweep | None
) -> Resources:
    """The resources of each trial; those of a stored sweep stay as they were fixed when it was created."""
    if stored is None:
        return share_out(options, machine, trials)
    shares = stored.shares or Shares.of(share_out(options, machine, stored.trials), stored.trials)
    return share_out(shares.kept(options, machine), machine, trials)


def _show_results(sweep: PlannedSweep, options: SweepOptions, console: Console) -> int:
    """Write the comparison to the terminal and the sweep's folder, with failures and paths; return the exit code."""
    folder = sweep.folder.patient()
    runs, broken = list_runs(folder)
    shown = shown_rows(folder, comparison(runs, planned_terms(folder, options.margin)))
    compute = compute_sentence(shown.all_rows)
    write_comparison(folder, shown, compute)
    ends = {run.name: run.end for run in runs if run.end is not None}
    failed = {name: end["summary"].get("error") or "unknown" for name, end in ends.items() if end["status"] == "failed"}
    lines = [f"failed: {sentence}" for sentence in _failures(failed)]
    lines += [f"cannot be read: {name}: {reason}" for name, reason in broken.items()]
    lines += [f"damaged: {sentence}" for run in runs for sentence in run.damage_sentences()]
    unfinished = [trial.run for trial in sweep.unfinished()]
    lines += [f"not finished: {name}" for name in unfinished if name not in failed]
    known = {run.folder.name for run in runs} | broken.keys() | set(unfinished)
    lost = [f"{trial.run}: its run.json is gone" for trial in sweep.trials if trial.run not in known]
    if not folder.has("sweep.json"):
        lost.append(f"{sweep.folder}: its sweep.json is gone; the folder was removed or replaced while the sweep ran")
    lines += [f"lost: {what}" for what in lost]
    places = [f"try again: {options.resume_command(sweep.name)}"] if unfinished else []
    places += [
        f"results: {sweep.folder} (comparison.md, comparison.csv)",
        f"dashboard: {dashboard_command(options.results)}",
    ]
    reports = {run.name: str(run.folder / REPORT) for run in runs if run.folder.has(REPORT)}
    Ending(sweep.name, shown, compute, reports, lines, places).show(console)
    return 1 if unfinished or broken or lost else 0


def _failures(reasons: Mapping[str, str]) -> list[str]:
    """A sentence per reason why runs failed, with the first run of each and the number of others.

    reasons: run -> reason.
    """
    alike: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        alike.setdefault(reason, []).append(name)
    more = {reason: f" and {len(names) - 1} more" if len(names) > 1 else "" for reason, names in alike.items()}
    return [f"{names[0]}{more[reason]}: {reason}" for reason, names in alike.items()]


if __name__ == "__main__":
    sys.exit(main())
