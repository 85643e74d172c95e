"""Takes a run's checkpoints while it trains, and puts a run that starts again where the newest intact one was taken.

In a process group only the first rank reads and writes checkpoints; it sends what it reads to the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from altgrad.collapse import BaselineGap, CollapseDetector
from altgrad.experiment.checkpoint import CheckpointError, check_content, load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import LossSummary
from altgrad.results import RunWriter
from altgrad.storage.folder import Folder
from altgrad.storage.patience import Outage
from altgrad.text.error_hints import cut
from altgrad.training.trainer import Trainer


@dataclass(frozen=True)
class RunInTraining:
    """Everything of a run that a checkpoint holds: the training, and what was seen of it so far.

    gap: None if the run is not compared to a baseline while it trains.
    """

    trainer: Trainer
    detector: CollapseDetector
    gap: BaselineGap | None
    losses: LossSummary = field(default_factory=LossSummary)

    @property
    def step(self) -> int:
        """Number of the last step that was trained; 0 before the first."""
        return self.trainer.step_number

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: trainer, detector, losses and gap."""
        return {
            "trainer": self.trainer.state_dict(),
            "detector": self.detector.state_dict(),
            "losses": self.losses.state_dict(),
            "gap": self.gap.state_dict() if self.gap is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be where the state was taken.  Raises CheckpointError if its entries are not those of this version."""
        check_content(state, self.state_dict())
        self.trainer.load_state_dict(state["trainer"])
        self.detector.load_state_dict(state["detector"])
        self.losses.load_state_dict(state["losses"])
        if self.gap is not None and state["gap"] is not None:
            self.gap.load_state_dict(state["gap"])


class Checkpointing:
    """The checkpoints of one run in one folder; what happens to them is recorded as events of the run."""

    def __init__(self, folder: Folder, run: RunInTraining, writer: RunWriter) -> None:
        self._folder = folder
        self._run = run
        self._writer = writer
        self._ranks = run.trainer.ranks
        self._outage = Outage(folder)

    def resume(self) -> None:
        """Continue from the newest intact checkpoint; without one the run begins at its first step.

        Raises CheckpointError for a checkpoint that is not this version's or model's.
        """
        state, corrupt = self._ranks.from_first(lambda: load_checkpoint(self._folder))
        if state is not None:
            self._take_over(state)
        step, writer = self._run.step, self._writer
        for name in corrupt:
            writer.event(step, "checkpoint_fallback", corrupt=name, resumed_from_step=step)
        if writer.attempt:
            writer.event(step, "restore", from_step=step, attempt=writer.attempt)

    def _take_over(self, state: Mapping[str, Any]) -> None:
        try:
            self._run.load_state_dict(state)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split()) if isinstance(error, ValueError) else repr(error)
            raise CheckpointError(
                f"{self._folder}: {cut(reason, 200)}; the checkpoint is another version's or model's: go on with "
                "that version, or remove the run's folder"
            ) from error

    def save(self) -> None:
        """Write a checkpoint, after flushing: a restored run does not write rows before its checkpoint again.

        If storage refuses the write, this checkpoint is skipped; if it keeps refusing, the run fails.
        """
        state = self._run.state_dict()
        if not (self._ranks.first and self._writer.flush(durable=True)):
            return
        try:
            save_checkpoint(self._folder.patient(0), self._run.step, state)
        except OSError as error:
            self._outage.refused(error)
            self._writer.event(self._run.step, "checkpoint_skipped", reason=" ".join(str(error).split()))
        else:
            self._outage.over()
