"""Takes a run's checkpoints while it trains, and puts a run that starts again where the newest intact one was taken.

A branch (see `altgrad.branch`) that has no checkpoint of its own yet starts from that of its parent.  In a process
group only the first rank reads and writes checkpoints; it sends what it reads to the others.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from altgrad.branch.checkpoints import kept
from altgrad.branch.parent import parent_config
from altgrad.collapse import BaselineGap, CollapseDetector, CollapseForecast, judged
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.checkpoints.checkpoint import (
    CheckpointError,
    check_content,
    delete_old,
    load_checkpoint,
    save_checkpoint,
)
from altgrad.experiment.outcome import LossSummary
from altgrad.results import RunWriter, read_start
from altgrad.results.reading.ancestors import records_until
from altgrad.results.reading.common_start import other_beginning
from altgrad.storage.folder import Folder
from altgrad.storage.patience import Outage
from altgrad.text.error_hints import cut
from altgrad.training.branch_state import adapted
from altgrad.training.data import unigram_entropy_of
from altgrad.training.trainer import Trainer


@dataclass(frozen=True)
class RunInTraining:
    """Everything of a run that a checkpoint holds: the training, and what was seen of it so far.

    gap: None if the run is not compared to a baseline while it trains.
    """

    trainer: Trainer
    detector: CollapseDetector
    gap: BaselineGap | None
    forecast: CollapseForecast
    losses: LossSummary = field(default_factory=LossSummary)

    @property
    def step(self) -> int:
        """Number of the last step that was trained; 0 before the first."""
        return self.trainer.step_number

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: trainer, detector, forecast, losses and gap."""
        return {
            "trainer": self.trainer.state_dict(),
            "detector": self.detector.state_dict(),
            "forecast": self.forecast.state_dict(),
            "losses": self.losses.state_dict(),
            "gap": self.gap.state_dict() if self.gap is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be where the state was taken.  Raises CheckpointError if its entries are not those of this version."""
        check_content(state, self.state_dict())
        self.trainer.load_state_dict(state["trainer"])
        self.detector.load_state_dict(state["detector"])
        if "forecast" in state:
            self.forecast.load_state_dict(state["forecast"])
        self.losses.load_state_dict(state["losses"])
        if self.gap is not None and state["gap"] is not None:
            self.gap.load_state_dict(state["gap"])

    def branch_state(self, state: Mapping[str, Any], before: TrainConfig, forget: Collection[str]) -> dict[str, Any]:
        """What of the state of a run with the config `before` this branch begins with."""
        trainer = self.trainer
        return {
            **state,
            "trainer": adapted(state["trainer"], trainer.state_dict(), before, trainer.config, forget),
        }

    def judge_again(self, records: Iterable[Mapping[str, float]]) -> None:
        """Judge the steps before a branch, whose gap to the baseline the parent's process did not know."""
        trainer = self.trainer
        detector = CollapseDetector(trainer.config, trainer.batches.vocabulary, unigram_entropy_of(trainer.batches))
        judged(detector, self.gap, records)
        self.detector.load_state_dict(detector.state_dict())


class Checkpointing:
    """The checkpoints of one run in one folder; what happens to them is recorded as events of the run."""

    def __init__(self, folder: Folder, run: RunInTraining, writer: RunWriter) -> None:
        self._folder = folder
        self._run = run
        self._writer = writer
        self._ranks = run.trainer.ranks
        self._outage = Outage(folder)
        run.trainer.earlier_states = self._states_before

    def _states_before(self, step: int) -> Iterator[Mapping[str, Any]]:
        """The trainer's states in this run's checkpoints from before a step, newest first; none that cannot be read.

        Only checkpoints that `kept` would keep at this time count: an interrupted run may have left others, and must
        repeat what it did before.
        """
        config = self._run.trainer.config
        interval = config.checkpoint_interval
        stay = kept(range(interval, self._run.step, interval), interval, config.keep_checkpoints)
        for place in sorted((one for one in stay if one < step), reverse=True):
            state = self._ranks.from_first(functools.partial(self._readable, place))
            if state is not None:
                yield state["trainer"]

    def _readable(self, step: int) -> dict[str, Any] | None:
        try:
            return load_checkpoint(self._folder.patient(0), step)[0]
        except OSError:  # storage that fails ends no run
            return None

    def resume(self) -> None:
        """Continue from the newest intact checkpoint; without one the run begins at its first step.

        Raises CheckpointError for a checkpoint that is not this version's or model's.
        """
        state, corrupt = self._ranks.from_first(lambda: load_checkpoint(self._folder))
        if state is not None:
            self._take_over(state)
        elif self._run.trainer.config.branch_from is not None:
            self._begin_branch(self._run.trainer.config.branch_from)
        step, writer = self._run.step, self._writer
        for name in corrupt:
            writer.event(step, "checkpoint_fallback", corrupt=name, resumed_from_step=step)
        if writer.attempt:
            writer.event(step, "restore", from_step=step, attempt=writer.attempt)

    def _begin_branch(self, origin: Mapping[str, Any]) -> None:
        """Be where the parent was at the branch's step.  Raises CheckpointError without a usable checkpoint there."""
        run, parent, step, forget = self._run, Folder.at(origin["run"]), origin["step"], origin.get("forget", [])
        trainer = run.trainer
        self._check_beginning(parent)
        if not step:
            return
        state, _ = self._ranks.from_first(lambda: load_checkpoint(parent / "checkpoints", step))
        if state is None:
            raise CheckpointError(f"branch_from: {parent}: no intact checkpoint of step {step}")
        before = self._ranks.from_first(lambda: parent_config(parent))
        try:
            whole = run.branch_state(state, before, forget)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._not_ours(error, parent / "checkpoints") from error
        self._take_over(whole, parent / "checkpoints")
        trainer.begin_branch(before, forget)
        if run.gap is not None and state["gap"] is None:
            run.judge_again(self._ranks.from_first(lambda: records_until(parent, step)))
        if run.detector.verdict is not None and trainer.config.stop_on_collapse:
            raise CheckpointError(
                f"branch_from: {parent}: the checkpoint of step {step} was taken after the verdict "
                f"({run.detector.verdict.sentence()}); branch from an earlier one"
            )

    def _check_beginning(self, parent: Folder) -> None:
        """Raise CheckpointError if the task, the initial weights or the batches are not the parent's."""
        trainer = self._run.trainer
        own = {
            "task_hash": trainer.task.digest,
            "initial_weights_hash": trainer.initial_weights_hash,
            "batches_hash": trainer.batches.digest(),
        }
        difference = self._ranks.from_first(lambda: other_beginning(read_start(parent), own))
        if difference is not None:
            raise CheckpointError(f"branch_from: {parent}: its run began with {difference}; restore it")

    def _take_over(self, state: Mapping[str, Any], source: Folder | None = None) -> None:
        try:
            self._run.load_state_dict(state)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise self._not_ours(error, source or self._folder) from error

    def _not_ours(self, error: Exception, source: Folder) -> CheckpointError:
        reason = " ".join(str(error).split()) if isinstance(error, ValueError) else repr(error)
        return CheckpointError(
            f"{source}: {cut(reason, 200)}; the checkpoint is another version's or model's: go on with "
            "that version, or remove the run's folder"
        )

    def over(self) -> None:
        """Call when the run has completed without a verdict: nobody replays it, and the newest checkpoints suffice."""
        config = self._run.trainer.config
        if self._ranks.first and config.keep_checkpoints == "octaves":
            with suppress(OSError):
                delete_old(self._folder.patient(0), config.checkpoint_interval, "newest")

    def save(self) -> None:
        """Write a checkpoint, after flushing: a restored run does not write rows before its checkpoint again.

        If storage refuses the write, this checkpoint is skipped; if it keeps refusing, the run fails.
        """
        state, config = self._run.state_dict(), self._run.trainer.config
        if not (self._ranks.first and self._writer.flush(durable=True)):
            return
        try:
            folder = self._folder.patient(0)
            save_checkpoint(folder, self._run.step, state)
            delete_old(folder, config.checkpoint_interval, config.keep_checkpoints)
        except OSError as error:
            self._outage.refused(error)
            self._writer.event(self._run.step, "checkpoint_skipped", reason=" ".join(str(error).split()))
        else:
            self._outage.over()
