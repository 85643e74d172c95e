"""Trains one arm of an explanation, in a process of Ray, and compares it with its run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from altgrad.branch.parent import with_parent
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.allocator import keep_freed_memory
from altgrad.experiment.runner import run_format_experiment
from altgrad.metrics import METRICS, columns
from altgrad.results import Run, read_run
from altgrad.storage.folder import Folder
from tune.cluster.ray_trial import described
from tune.plan.sweep_record import is_finished

_LAST = 10  # steps whose mean loss is compared
# Measured by another process (the gap) or by the clock: no part of what an unchanged replay must repeat.
_NOT_REPEATED = {"gap_to_baseline", "elapsed_seconds", "tokens_per_second"}


def train_arm(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train an arm to its end, if it has not ended already; return the fields of its `ArmRecord` that it measured.

    job: plain values, see `explaining.job_of`.  An arm that raises has the status `failed` and an error of one line.
    """
    folder = Folder.at(job["folder"]).patient()
    if not is_finished(folder):
        torch.set_num_threads(job["threads"])
        keep_freed_memory()
        try:
            _train(job, folder)
        except Exception as error:  # of many classes; an arm that cannot train is a result, and the others go on
            return {"status": "failed", "error": described(error)}
    with suppress(OSError):
        if (folder / "checkpoints").list():
            folder.filesystem.delete_dir(f"{folder.path}/checkpoints")  # nobody branches from an arm
    return _outcome(job, read_run(folder))


def _train(job: Mapping[str, Any], folder: Folder) -> None:
    config = with_parent(TrainConfig(**job["config"]))
    run_format_experiment(
        config,
        folder,
        run=job["name"],
        until=job["until"],
        baseline=job["baseline"],
        baseline_start=job["baseline_start"],
        group=job["owner"],
    )


def _outcome(job: Mapping[str, Any], arm: Run) -> dict[str, Any]:
    parent = read_run(Folder.at(job["run"]))
    verdict = arm.verdict
    last = int(arm.end["summary"].get("steps") or 0) if arm.end is not None else 0
    found: dict[str, Any] = {
        "status": "prevented" if verdict is None else "collapsed",
        "step": None if verdict is None else verdict.step,
        "rule": None if verdict is None else verdict.rule,
        "steps": last,
        "seconds": arm.end["summary"].get("seconds") if arm.end is not None else None,
    }
    reached = [last, parent.verdict.step if parent.verdict is not None else last]
    if job["baseline"]:
        reached.append(max(job["baseline"]))
    at = min(reached)
    losses = {int(row["step"]): row["loss"] for row in arm.table("steps", ["loss"]).to_pylist()}
    theirs = {int(row["step"]): row["loss"] for row in parent.table("steps", ["loss"]).to_pylist()}
    found |= {"loss_step": at, "loss": _mean(losses, at)}
    if not job["on_other_batches"]:  # on which neither the run nor its baseline was trained
        found |= {"loss_control": _mean(theirs, at), "loss_baseline": _mean(job["baseline"] or {}, at)}
    if job["unchanged"]:
        found["error"] = _difference(arm, parent, job)
        found["repeats"] = found["error"] is None
    return found


def _difference(arm: Run, parent: Run, job: Mapping[str, Any]) -> str | None:
    """In which number an unchanged replay first differs from its run, in words; None if it repeats it bit for bit."""
    names = [n for n in columns("step") if METRICS[n].every != "report" and n not in _NOT_REPEATED]
    theirs, own = _rows(parent, parent, names, job), _rows(arm, parent, names, job)
    for step in sorted(theirs.keys() | own.keys()):
        for name in names:
            before, now = (rows.get(step, {}).get(name) for rows in (theirs, own))
            if repr(before) != repr(now):  # as text NaN equals NaN
                return f"{name} at step {step} is {now!r} instead of {before!r}{_another_version(arm, parent)}"
    if repr(arm.verdict) != repr(parent.verdict):
        return f"its verdict differs{_another_version(arm, parent)}"
    return None


def _another_version(arm: Run, parent: Run) -> str:
    """What may be the reason: code or libraries that are not those of the run; "" if they are."""
    names = [name for name in ("git_commit", "versions") if arm.info.get(name) != parent.info.get(name)]
    return "; another version trained the run" if names else ""


def _rows(run: Run, parent: Run, names: list[str], job: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Step -> the deterministic numbers of a run from the start of the replay to the parent's verdict."""
    end = parent.verdict.step if parent.verdict is not None else job["until"]
    rows = run.table("steps", names).to_pylist()
    return {int(row["step"]): row for row in rows if job["start"] < row["step"] <= end}


def _mean(losses: Mapping[int, float], at: int) -> float | None:
    """Mean of the losses of the last ten steps up to `at`; None if the run did not reach it."""
    found = [loss for step, loss in losses.items() if at - _LAST < step <= at and loss is not None]
    return sum(found) / len(found) if found and at in losses else None
