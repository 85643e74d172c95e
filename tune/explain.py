"""Prove the cause of a collapse: replay it with one thing healed at a time, and say what was shown.

    python tune/explain.py RUN_DIR | SWEEP_DIR [--budget ARMS] [--steps N] [--replays N] [--dry-run]

The arms train concurrently on a private Ray, or on the cluster of `--address`.  Each has a folder of its own below the
run's, so that the same command goes on where it was interrupted.  `altgrad explain` is the same.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: this folder is on the path, the repository's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from altgrad.commands.extras import exit_without

    exit_without("sweep")

from rich.console import Console

from altgrad.commands.known_folder import expect
from altgrad.commands.option_fields import add_options, option
from altgrad.commands.option_parser import OneLineParser, count, examples, location, word
from altgrad.commands.typed_command import program_command
from altgrad.results import Run, list_runs, read_run
from altgrad.storage.folder import Folder, absolute
from altgrad.text.error_hints import error_text
from altgrad.text.number_text import duration
from altgrad.text.terminal_output import harmless, say, unstoppable_output
from tune.cluster.ray_watch import EXIT_CODE, RayFailed
from tune.plan.options import SweepError
from tune.plan.resources.machine import Machine, this_machine
from tune.replay.case_of_run import Replayed, replayed
from tune.replay.explaining import Explanation

BUDGET, REPLAYS = 24, 3
_START_SECONDS = 10.0  # of an arm's process: imports, data, first step


@dataclass(frozen=True)
class ExplainOptions:
    """The options of the command line."""

    # fmt: off
    budget: int = option("how it runs", count, "most replays of a run, the unchanged one included", default=BUDGET, metavar="ARMS")
    steps: int | None = option("how it runs", count, "steps of a replay (default: half as far again as from its start to the verdict)", metavar="N")
    replays: int = option("how it runs", count, "how often what is found is tried, on other batches each time", default=REPLAYS, metavar="N")
    max_concurrent: int | None = option("how it runs", count, "most replays that run at the same time", metavar="N")
    dry_run: bool = option("how it runs", bool, "print the arms and the expected time, and run nothing", default=False)
    address: str | None = option("how it runs", word, "address of an existing Ray cluster, such as auto or ray://HEAD:10001")
    # fmt: on


def main(arguments: Sequence[str] | None = None) -> int:
    """Explain the run or sweep that the command line names; returns the exit code.

    0: every explanation is made; 1: an unchanged replay did not repeat its run; 2: bad input; 3: Ray died; 130: Ctrl-C.
    """
    parser = OneLineParser(
        prog=program_command(),
        description="Find out what made a run collapse: replay it from a checkpoint before the collapse with one thing "
        "healed at a time (a layer, an operand, the rate), and name what saves it.",
        epilog=examples("explain results/s1/e7m0-s42", "explain results/s1 --budget 12 --dry-run"),
    )
    parser.add_argument(
        "folder", type=location, help="folder of a collapsed run, or of a sweep: all its collapsed runs"
    )
    add_options(parser, ExplainOptions)
    found = vars(parser.parse_args(arguments))
    folder = found.pop("folder")
    with unstoppable_output():
        try:
            return _explain(absolute(folder), ExplainOptions(**found), Console())
        except (ValueError, OSError) as error:
            print(f"{program_command()}: error: {harmless(error_text(error))}", file=sys.stderr)
            return 2
        except RayFailed as error:
            print(f"{program_command()}: {error}", file=sys.stderr)
            return EXIT_CODE
        except KeyboardInterrupt:
            print(f"{program_command()}: interrupted; the same command goes on", file=sys.stderr)
            return 130


def _explain(location: str, options: ExplainOptions, console: Console) -> int:
    folder = Folder.at(location)
    if expect(folder, "run.json", "sweep.json") == "run.json":
        runs = [read_run(folder)]
    else:
        runs = [run for run in list_runs(folder)[0] if run.verdict is not None]
        if not runs:
            raise SweepError(f"{folder}: no run of this sweep has collapsed; there is nothing to explain")
    with ExitStack() as stack:
        machine = this_machine()
        if options.address and not options.dry_run:
            from tune.cluster.ray_session import connected_ray

            machine = stack.enter_context(connected_ray(options.address))
        return explain_runs(runs, options, machine, console, stack)


def explain_runs(
    runs: Sequence[Run], options: ExplainOptions, machine: Machine, console: Console, stack: ExitStack
) -> int:
    """Explain collapsed runs, and print each conclusion; returns the exit code of `main`.

    Uses the Ray that is connected, else a private one until `stack` closes.  Of several runs, one that cannot be
    explained is named and left out; a single one raises SweepError.
    """
    cases: list[Replayed] = []
    for run in runs:
        try:
            cases.append(replayed(run, options.steps, options.replays))
        except SweepError as error:
            if len(runs) == 1:
                raise
            say(console, f"left out: {error}")
    if not cases:
        return 0
    slots = _slots(cases, machine, options)
    for case in cases:
        _announce(case, options, slots, console)
    if options.dry_run:
        return 0
    explanations = [Explanation(case, options.budget) for case in cases]
    _run(explanations, slots, machine, console, stack)
    codes = []
    for explanation in explanations:
        found = explanation.end()
        say(console, f"{explanation.replayed.run.name}: {found.sentence}  Confidence: {found.confidence}.")
        if explanation.spent is not None:
            say(console, f"  {explanation.spent}")
        say(console, f"  {explanation.folder}/explanation.json, failure_report.md")
        codes.append(1 if found.rule == "not_reproduced" else 0)
    return max(codes)


def _slots(cases: Sequence[Replayed], machine: Machine, options: ExplainOptions) -> int:
    """Replays at a time: as many as the machine's cores, or GPUs, hold."""
    threads = max(case.threads for case in cases)
    fit = machine.cpus // threads
    gpus = max(case.gpus for case in cases)
    if gpus:
        fit = min(fit, int(machine.gpus / gpus))
        if not machine.gpus:
            raise SweepError(f"the run trained on a GPU, and a replay elsewhere differs: {machine.gpu_note}")
    return max(1, min(fit, options.max_concurrent or fit))


def _announce(replayed: Replayed, options: ExplainOptions, slots: int, console: Console) -> None:
    run, case, verdict = replayed.run, replayed.case, replayed.run.verdict
    assert verdict is not None
    moved = "" if replayed.moved is None else f"; {replayed.moved.metric} moved first, at step {replayed.moved.step}"
    say(console, f"{run.name}: {verdict.sentence()}{moved}")
    for note in replayed.notes:
        say(console, f"  {note}")
    count = f"{options.budget} replay{'s' * (options.budget > 1)}"
    at_most = f"at most {count} of steps {case.start + 1} to {case.until}, {slots} at a time"
    if replayed.step_seconds is not None:
        each = _START_SECONDS + replayed.arm_steps * replayed.step_seconds
        at_most += f", about {duration(each * -(-options.budget // slots))}"
    say(console, f"  {at_most}")
    if not options.dry_run:
        return
    first = [case.control(), *([case.heal(case.everything)] if case.cells else []), *case.settings]
    for arm in first[: options.budget]:
        say(console, f"    {arm.name}: {arm.label}")
    if len(first) < options.budget:
        say(console, f"    then the bisection over {len(case.cells)} cells (operand of a GEMM in a layer), and replays")


def _run(explanations: Sequence[Explanation], slots: int, machine: Machine, console: Console, stack: ExitStack) -> None:
    """Train the arms of all explanations, `slots` at a time, until none wants another."""
    import ray

    if not ray.is_initialized():
        from tune.cluster.ray_session import local_ray

        stack.enter_context(local_ray(machine, lambda which: say(console, f"{which}; the same command goes on")))
    from tune.replay.arm_run import train_arm

    remote: Any = ray.remote(train_arm)
    owner = uuid.uuid4().hex
    running: dict[Any, tuple[Explanation, Any]] = {}
    for explanation in explanations:
        explanation.begin()
    while True:
        for explanation in explanations:
            while len(running) < slots and (arm := explanation.next_arm()) is not None:
                needs = {"num_cpus": explanation.replayed.threads, "num_gpus": explanation.replayed.gpus}
                task = remote.options(**needs).remote(explanation.job_of(arm, owner))
                running[task] = explanation, arm
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        explanation, arm = running.pop(done[0])
        found = _result(done[0])
        explanation.take(arm, found)
        say(console, f"{explanation.replayed.run.name}: {arm.label}: {_said(found)}")


def _result(task: Any) -> dict[str, Any]:
    """What an arm's process returned; a process that died for good is a failed arm."""
    import ray

    from tune.cluster.ray_trial import described

    try:
        found: dict[str, Any] = ray.get(task)
    except ray.exceptions.RayError as error:
        return {"status": "failed", "error": described(error)}
    return found


def _said(found: dict[str, Any]) -> str:
    if found["status"] == "failed":
        return f"failed: {found['error']}"
    loss = "" if found["loss"] is None else f", loss {found['loss']:.4g} at step {found['loss_step']}"
    if found["status"] == "prevented":
        return f"does not collapse until step {found['steps']}{loss}"
    unlike = f", other numbers than in the run ({found.get('error')})"
    repeats = {True: ", bit for bit as in the run", False: unlike, None: ""}
    return f"collapses at step {found['step']} ({found['rule']}){loss}{repeats[found.get('repeats')]}"


if __name__ == "__main__":
    sys.exit(main())
