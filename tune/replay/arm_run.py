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
from altgrad.results import Run, ended_as, read_run
from altgrad.storage.folder import Folder
from tune.cluster.ray_trial import described

_LAST = 10  # steps whose mean loss is compared
# Measured by another process (the gap) or by the clock: no part of what an unchanged replay must repeat.
_NOT_REPEATED = {"gap_to_baseline", "elapsed_seconds", "tokens_per_second"}
_DONE = ("completed", "collapsed", "stopped")


def train_arm(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train an arm to its end, if it has not ended already; return the fields of its `ArmRecord` that it measured.

    job: plain values, see `explaining.job_of`.  An arm that raises has the status `failed` and an error of one line.
    """
    folder = Folder.at(job["folder"]).patient()
    if ended_as(folder) not in _DONE:
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
        same = repr(verdict) == repr(parent.verdict)  # as text NaN equals NaN
        found["repeats"] = same and _rows(arm, parent, job) == _rows(parent, parent, job)
    return found


def _rows(run: Run, parent: Run, job: Mapping[str, Any]) -> str:
    """The deterministic numbers of a run's steps from the start of the replay to the parent's verdict, as text."""
    names = [n for n in columns("step") if METRICS[n].every != "report" and n not in _NOT_REPEATED]
    end = parent.verdict.step if parent.verdict is not None else job["until"]
    rows = run.table("steps", names).to_pylist()
    return repr([[row[name] for name in names] for row in rows if job["start"] < row["step"] <= end])


def _mean(losses: Mapping[int, float], at: int) -> float | None:
    """Mean of the losses of the last ten steps up to `at`; None if the run did not reach it."""
    found = [loss for step, loss in losses.items() if at - _LAST < step <= at and loss is not None]
    return sum(found) / len(found) if found and at in losses else None
