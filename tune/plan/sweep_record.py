"""`sweep.json`: the plan of a sweep, so that it can be resumed without its command line and its config files.

The run folders record the progress.  Both together are the whole state of a sweep; no state of Ray is needed.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from altgrad.commands.option_fields import masked
from altgrad.commands.typed_command import typed_arguments, typed_command
from altgrad.results import SCHEMA, Lease, LeaseHeld, RunWriter, ended_as, list_sweeps, read_plan
from altgrad.storage.folder import Folder, absolute, check_location
from altgrad.text.error_hints import cut, did_you_mean, shown
from tune.plan.more_seeds import MoreSeeds
from tune.plan.options import NEWEST, SweepError, SweepOptions
from tune.plan.resources.machine import Resources, Shares
from tune.plan.trial import SweepPlan, Trial

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FINISHED = ("completed", "collapsed", "stopped")


@dataclass(frozen=True)
class PlannedSweep:
    """A planned sweep and its folder `<results>/<name>`; `results` is absolute or a URI.

    `shares`: the resources of each trial, fixed when the sweep was created; None if an old record lacks them.
    `more_seeds`: the rule of `--seeds auto`; None without it.
    `owner`: id of the process that runs the sweep, see `altgrad.results.lease`; None if it is only read.
    """

    results: str
    name: str
    trials: tuple[Trial, ...]
    shares: Shares | None = None
    more_seeds: MoreSeeds | None = None
    owner: str | None = field(default=None, compare=False)

    @property
    def folder(self) -> Folder:
        """The sweep's folder; it need not exist."""
        return Folder.at(self.results) / self.name

    def held(self, stack: ExitStack) -> PlannedSweep:
        """This sweep, leased by this process until the stack closes.  Raises SweepError if another process has it."""
        try:
            lease = Lease.take(self.folder)
        except LeaseHeld as error:
            raise SweepError(str(error)) from error
        except OSError as error:
            raise SweepError(f"--results: {' '.join(str(error).split())}") from error
        stack.callback(lease.release)
        return replace(self, owner=lease.owner)

    def extended(self, trials: Sequence[Trial]) -> PlannedSweep:
        """This sweep with one more round of trials, stored in its `sweep.json`; each runs as those of its group do."""
        assert self.more_seeds is not None
        rule = replace(self.more_seeds, rounds=self.more_seeds.rounds + 1)
        record = read_plan(self.folder)
        record |= {"runs": [one.to_json() for one in (*self.trials, *trials)], "more_seeds": asdict(rule)}
        shares = self.shares
        if shares is not None:
            alike = dict(shares.runs_alike)
            for trial in trials:
                kin = [one.run for one in self.trials if one.kin == trial.kin and one.run in alike]
                alike[trial.run] = alike[kin[0]] if kin else 1
            shares = replace(shares, runs_alike=alike)
            record["resources"] = asdict(shares)
        self.folder.write_json("sweep.json", record)
        return replace(self, trials=(*self.trials, *trials), shares=shares, more_seeds=rule)

    def unfinished(self) -> list[Trial]:
        """The trials without an end record, and those that failed, in the planned order."""
        return [trial for trial in self.trials if not is_finished(self.folder / trial.run)]


def create_sweep(options: SweepOptions, plan: SweepPlan, resources: Resources | None = None) -> PlannedSweep:
    """Create the sweep's folder with its `sweep.json`.  Raises SweepError, and then leaves no files behind.

    Resources that affect results in the last digits (threads, workers, `runs_alike`) are fixed here for all resumes.
    """
    check_new(options)
    results = _location(options.results)
    with _storage_errors(options):
        shares = None if resources is None else Shares.of(resources, plan.trials)
        more_seeds = MoreSeeds.of(options)
        sweep = PlannedSweep(results, options.name or _free_name(results), plan.trials, shares, more_seeds)
        record = {
            "schema": SCHEMA,
            "sweep": sweep.name,
            "created": time.time(),
            "command": shlex.join([*typed_command(), *masked(typed_arguments(), SweepOptions)]),
            "runs": [trial.to_json() for trial in plan.trials],
        }
        record |= {} if shares is None else {"resources": asdict(shares)}
        record |= {} if options.margin is None else {"margin": options.margin}
        record |= {} if more_seeds is None else {"more_seeds": asdict(more_seeds)}
        existing = _deepest_existing(sweep.folder)
        try:
            sweep.folder.write_json("sweep.json", record)
        except OSError:
            _remove_new(sweep.folder, existing)
            raise
    return sweep


def check_new(options: SweepOptions) -> None:
    """Raise SweepError if the sweep's name is not a plain folder name, or is taken."""
    if options.name is None:
        return
    if not _NAME.fullmatch(options.name):
        raise SweepError(
            f"--name {shown(options.name)}: letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    with _storage_errors(options):
        folder = Folder.at(_location(options.results)) / options.name
        taken = bool(folder.list())
    if taken:
        raise SweepError(f"--name {options.name}: {folder} exists; go on with it by --resume {options.name}, or rename")


def open_sweep(options: SweepOptions) -> PlannedSweep:
    """The sweep that `--resume` names.  Raises SweepError if there is none, or if its record cannot be read."""
    results = _location(options.results)
    with _storage_errors(options):
        root = Folder.at(results)
        known = [folder.name for folder in list_sweeps(root)]
    name = options.name if options.resume in (None, NEWEST) else options.resume
    if options.name not in (None, name):
        raise SweepError(f"--resume {name} --name {options.name}: give one name")
    if not known:
        what = "--resume" if name is None else f"--resume {cut(name)}"
        raise SweepError(f"{what}: no sweep in {root}; start one without --resume, or point --results to it")
    name = known[0] if name is None else name
    if name not in known:
        there = f"{', '.join(known[:5])}{did_you_mean(name, known)}"
        raise SweepError(f"--resume {cut(name)}: no such sweep in {root}; there: {there}")
    try:
        record = read_plan(root / name)
        trials = [Trial.from_json(fields, str(root / name / "sweep.json")) for fields in record["runs"]]
    except (ValueError, OSError) as error:
        raise SweepError(f"--resume {name}: cannot read its plan: {error}") from error
    found = record.get("resources")
    shares = None if found is None else Shares(**{name: found[name] for name in Shares.__dataclass_fields__})
    rule = record.get("more_seeds")
    more_seeds = None if rule is None else MoreSeeds(rule["most"], rule["looks"], rule["rounds"])
    return PlannedSweep(results, name, tuple(trials), shares, more_seeds)


def check_same_plan(sweep: PlannedSweep, trials: Sequence[Trial], options: SweepOptions) -> None:
    """With `--resume`, options that plan must plan the stored sweep again.  Raises SweepError naming a difference."""
    stored = {trial.run: trial.config for trial in sweep.trials}
    planned = {trial.run: trial.config for trial in trials}
    advice = f"leave out {' '.join(options.planning())}, or start a new sweep without --resume"
    for run in stored.keys() ^ planned.keys():
        where = "stored plan" if run in stored else "options"
        raise SweepError(f"--resume {sweep.name}: only the {where} has the run {run}; {advice}")
    for run, config in stored.items():
        new = planned[run].model_dump()
        for name, value in config.model_dump().items():
            if new[name] != value:
                change = f"{name} is {shown(value)}, the options say {shown(new[name])}"
                raise SweepError(f"--resume {sweep.name}: {run}: {change}; {advice}")


def is_finished(folder: Folder) -> bool:
    """Whether the run in a folder needs no more training: it is completed, collapsed or was stopped on request."""
    return ended_as(folder) in _FINISHED


def write_never_started(folder: Folder, trial: Trial, sweep: str) -> None:
    """Write the `run.json` of a run that died before it could, so that the comparison lists it."""
    info = {"run": trial.run, "sweep": sweep, "config": trial.config.model_dump(), "intervention": trial.intervention}
    RunWriter(folder).start(info)


@contextmanager
def _storage_errors(options: SweepOptions) -> Iterator[None]:
    """Context that turns errors of the results root into a SweepError of one line that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise SweepError(f"--results {options.results}: {reason}") from error
    except SweepError:
        raise
    except ValueError as error:  # its message already names the location, without credentials
        raise SweepError(f"--results: {error}") from error


def _location(results: str) -> str:
    """The results root as an absolute path or a URI.  Raises SweepError if it is neither."""
    try:
        check_location(results)
    except ValueError as error:
        raise SweepError(f"--results: {error}") from error
    return absolute(results)


def _free_name(results: str) -> str:
    """A name by date and time that no sweep in `results` has."""
    name = time.strftime("sweep-%Y%m%d-%H%M%S")
    taken = {Path(info.path).name for info in Folder.at(results).list()}
    count = 1
    while (f"{name}-{count}" if count > 1 else name) in taken:
        count += 1
    return f"{name}-{count}" if count > 1 else name


def _deepest_existing(folder: Folder) -> str:
    """The nearest folder above (or at) a folder that exists now."""
    path = folder.path
    while "/" in path and folder.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        path = path.rsplit("/", 1)[0]
    return path


def _remove_new(folder: Folder, existing: str) -> None:
    """Remove the folders that a failed creation made below `existing`."""
    below = folder.path[len(existing) :].strip("/").split("/")[0]
    made = f"{existing}/{below}"
    if below and folder.filesystem.get_file_info(made).type == pafs.FileType.Directory:
        folder.filesystem.delete_dir(made)
